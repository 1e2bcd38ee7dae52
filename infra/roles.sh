#!/usr/bin/env bash
set -euo pipefail

# The roles that infra/modules assigns, and that a deployer must be able to assign:
#   Communication and Email Service Owner, Monitoring Metrics Publisher,
#   Storage Blob Data Owner, Storage Blob Data Contributor, Storage Table Data Contributor
ROLES="09976791-48a7-449e-bb21-39d1a415f350, 3913510d-42f4-4e42-8a64-420c390055eb, b7e6dc6d-f1e8-4753-8033-0f276bb0955b, ba92f5b4-2d11-453d-a403-e96b0029c9fe, 0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3"

usage() {
  cat <<'USAGE'
Assigns the roles for deploying, or for reading, on the subscription of `az login`.

    infra/roles.sh deployer OBJECT_ID [--type User|Group|ServicePrincipal] [--dry-run]
    infra/roles.sh reader   OBJECT_ID [--type User|Group|ServicePrincipal] [--dry-run]

deployer: Contributor; Role Based Access Control Administrator, with a condition that allows only the
roles that infra/main.bicep assigns; and a custom role for the locks. User Access Administrator would
include the locks, but also role definitions and requests that no such condition covers.
reader: Reader, and a custom role for `what-if`, which changes nothing.

You need Owner or User Access Administrator to run it. A second run changes nothing.
USAGE
}

fail() { printf 'roles.sh: %s\n' "$*" >&2; exit 1; }

KIND=
PRINCIPAL=
TYPE=User
DRY_RUN=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dry-run) DRY_RUN=1 ;;
    --type) case ${2:--} in -*) fail "--type needs a value" ;; esac; TYPE=$2; shift ;;
    deployer | reader) KIND=$1 ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$PRINCIPAL" ] || fail "one object id at a time"; PRINCIPAL=$1 ;;
  esac
  shift
done
if [ -z "$KIND" ] || [ -z "$PRINCIPAL" ]; then usage >&2; exit 2; fi

# Every call that changes something goes through here. New objects are not known everywhere at once, so
# each call is retried.
change() {
  local shown pause
  shown=$(printf ' %q' "$@")
  printf '+%s\n' "$shown"
  [ -z "$DRY_RUN" ] || return 0
  for pause in 5 10 20 40; do
    if "$@" >/dev/null; then return 0; fi
    printf 'Trying again in %s seconds.\n' "$pause" >&2
    sleep "$pause"
  done
  "$@" >/dev/null || fail "this command failed:$shown"
}

ask() { az "$@" --output tsv | tr -d '\r'; }

SUBSCRIPTION=$(ask account show --query id) || fail "sign in first: az login"
SCOPE=/subscriptions/$SUBSCRIPTION

# give ROLE [CONDITION]
give() {
  local found id
  found=$(ask role assignment list --scope "$SCOPE" --assignee-object-id "$PRINCIPAL" --role "$1" \
    --query "[].[id, condition]" 2>/dev/null || true) # In a dry run, the custom role may not exist.
  if [ -n "$found" ]; then
    id=${found%%$'\t'*}
    [ "${found#*$'\t'}" != "${2:-}" ] && [ -n "${2:-}" ] || return 0
    # To set the condition of an existing assignment, the whole assignment must be written again.
    change az role assignment delete --ids "$id"
  fi
  set -- az role assignment create --scope "$SCOPE" --assignee-object-id "$PRINCIPAL" \
    --assignee-principal-type "$TYPE" --role "$1" ${2:+--condition-version 2.0 --condition "$2"}
  change "$@"
}

# define ROLE DESCRIPTION ACTION...; the name of a custom role must be unique in the tenant.
define() {
  local name=$1 description=$2 actions definition
  shift 2
  actions=$(ask role definition list --custom-role-only true --name "$name" --scope "$SCOPE" \
    --query "[].permissions[].actions[]")
  definition=$(python3 -c '
import json, sys
name, description, scope, *actions = sys.argv[1:]
print(json.dumps({"Name": name, "Description": description, "Actions": actions, "AssignableScopes": [scope]}))
' "$name" "$description" "$SCOPE" "$@")
  if [ -z "$actions" ]; then
    change az role definition create --role-definition "$definition"
  elif [ "$(sort <<<"$actions")" != "$(printf '%s\n' "$@" | sort)" ]; then
    change az role definition update --role-definition "$definition"
  fi
}

if [ "$KIND" = reader ]; then
  WHAT_IF="ACS token broker what-if ($SUBSCRIPTION)"
  define "$WHAT_IF" "Show what a deployment would change." \
    Microsoft.Resources/deployments/validate/action Microsoft.Resources/deployments/whatIf/action
  give Reader
  give "$WHAT_IF"
else
  CAN_LOCK="ACS token broker locks ($SUBSCRIPTION)"
  define "$CAN_LOCK" "Make and remove locks." \
    Microsoft.Authorization/locks/write Microsoft.Authorization/locks/delete
  give Contributor
  give "$CAN_LOCK"
  # https://learn.microsoft.com/azure/role-based-access-control/delegate-role-assignments-examples
  give "Role Based Access Control Administrator" "((!(ActionMatches{'Microsoft.Authorization/roleAssignments/write'})) OR (@Request[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$ROLES})) AND ((!(ActionMatches{'Microsoft.Authorization/roleAssignments/delete'})) OR (@Resource[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$ROLES}))"
fi
