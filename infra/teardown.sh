#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Deletes an environment: its locks, its resources, its role and diagnostic setting on an ACS resource
of another group, and the records of its deployments. It lists all of them first, and asks for the
environment's name.

    infra/teardown.sh ENVIRONMENT [--dry-run] [--yes ENVIRONMENT] [--purge-logs]
                      [--registration CLIENT_ID]...

    --dry-run       print each call that changes something, and make none
    --yes NAME      do not ask; NAME must be the environment's
    --purge-logs    delete the logs for good. Otherwise the workspace can be recovered for 14 days,
                    and a new deployment of the same environment gets it back with its logs.
    --registration  also delete a registration in Entra for good, with its roles. It is refused if
                    another environment of the subscription uses the registration.

The mapping tables cannot be recreated: export them first (python -m infra.mappings export). The
backups of the tables are deleted as well, unless their immutability policy was locked: then Azure
keeps them, their account and the group until the last one has expired.
You need the roles of a deployer (infra/roles.sh) to run it; --registration also takes Cloud
Application Administrator in Entra, and User Access Administrator if a registration has roles.
It can be run again.
USAGE
}

fail() { printf 'teardown.sh: %s\n' "$*" >&2; exit 1; }

HERE=$(cd "$(dirname "$0")" && pwd)
ENVIRONMENT=
CONFIRMED=
DRY_RUN=
PURGE_LOGS=
REGISTRATIONS=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dry-run) DRY_RUN=1 ;;
    --purge-logs) PURGE_LOGS=1 ;;
    --yes | --registration)
      case ${2:--} in -*) fail "$1 needs a value" ;; esac
      if [ "$1" = --yes ]; then CONFIRMED=$2; else REGISTRATIONS="$REGISTRATIONS$2"$'\n'; fi
      shift
      ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$ENVIRONMENT" ] || fail "one environment at a time"; ENVIRONMENT=$1 ;;
  esac
  shift
done
[ -n "$ENVIRONMENT" ] || { usage >&2; exit 2; }
IFS=$'\n' # The lists below have an item on each line: the name of a lock may have spaces.
[[ $ENVIRONMENT =~ ^[A-Za-z0-9-]+$ ]] || fail "not the name of an environment: $ENVIRONMENT"
for id in $REGISTRATIONS; do
  [[ $id =~ ^[0-9a-fA-F-]{36}$ ]] || fail "not a client id: $id"
done
[ -z "$CONFIRMED" ] || [ "$CONFIRMED" = "$ENVIRONMENT" ] || fail "--yes $CONFIRMED does not name $ENVIRONMENT"

# Every call that changes something goes through here.
change() {
  local shown
  shown=$(printf ' %q' "$@")
  printf '+%s\n' "$shown"
  [ -n "$DRY_RUN" ] || "$@"
}

# Some deletions take a while to be known everywhere, so this tries again. The first argument is the
# error message in case it never succeeds.
change_at_last() {
  local message=$1 pause
  shift
  for pause in 5 10 20 40 80; do
    if change "$@"; then return 0; fi
    printf 'Trying again in %s seconds.\n' "$pause" >&2
    sleep "$pause"
  done
  change "$@" || fail "$message: run this again"
}

# Prints Azure's answer as lines, without the carriage returns of the Azure CLI on Windows.
ask() { az "$@" --output tsv | tr -d '\r'; }

SUBSCRIPTION=$(ask account show --query "[name, id] | join(' ', @)") || fail "sign in first: az login"
GROUP=rg-acs-token-broker-$ENVIRONMENT
PRESENT=$(ask group exists --name "$GROUP")

LOCKS=
BACKUPS=
POLICY=
WORKSPACES=
ASSIGNMENTS=
SETTINGS=
if [ "$PRESENT" = true ]; then
  TAG=$(ask group show --name "$GROUP" --query 'tags."azd-env-name"')
  [ "$TAG" = "$ENVIRONMENT" ] || fail "$GROUP is not tagged azd-env-name=$ENVIRONMENT: it was not made by infra/main.bicep"
  LOCKS=$(ask lock list --resource-group "$GROUP" --query "[].id")
  WORKSPACES=$(ask resource list --resource-group "$GROUP" \
    --resource-type Microsoft.OperationalInsights/workspaces --query "[].name")
  # Microsoft's page says in one place that an unlocked policy keeps an account with blobs from being
  # deleted, and in another that it does not, so it is deleted first.
  # https://learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies#scenarios
  BACKUPS=$(ask storage account list --resource-group "$GROUP" --query "[?starts_with(name, 'stbackup')].name")
  if [ -n "$BACKUPS" ]; then
    POLICY=$(ask storage container immutability-policy show --resource-group "$GROUP" --account-name "$BACKUPS" \
      --container-name mappings-backup --query "join(' ', [state, etag])" 2>/dev/null || true)
  fi
  # An ACS resource of another group still has the identity's role, and a diagnostic setting.
  if ACS=$("$HERE/outputs.sh" "$ENVIRONMENT" ACS_RESOURCE_ID); then
    APP=$("$HERE/outputs.sh" "$ENVIRONMENT" AZURE_FUNCTION_NAME)
    PRINCIPAL=$("$HERE/outputs.sh" "$ENVIRONMENT" IDENTITY_PRINCIPAL_ID)
    if ! printf '%s' "$ACS" | grep -qi "/resourceGroups/$GROUP/"; then
      ASSIGNMENTS=$(ask role assignment list --scope "$ACS" --assignee-object-id "$PRINCIPAL" --query "[].id")
      SETTINGS=$(ask monitor diagnostic-settings list --resource "$ACS" --query "[?name=='$APP'].name")
    fi
  else
    printf '%s\n' "No outputs: a role and a diagnostic setting on an ACS resource of another group are left." >&2
  fi
fi

# Another environment that uses the registration would refuse everybody without it.
if [ -n "$REGISTRATIONS" ]; then
  OTHERS=$(ask group list --query "[?starts_with(name, 'rg-acs-token-broker-')].name")
  for other in $OTHERS; do
    [ "$other" != "$GROUP" ] || continue
    other=${other#rg-acs-token-broker-}
    url=$("$HERE/outputs.sh" "$other" ADMIN_CONSENT_URL) ||
      fail "cannot tell which registration the environment $other uses: delete that environment first"
    for id in $REGISTRATIONS; do
      if grep -qi "client_id=$id" <<<"$url"; then fail "the environment $other uses the registration $id, too"; fi
    done
  done
fi

DEPLOYMENTS=$(ask deployment sub list --query "[?name=='acs-token-broker-$ENVIRONMENT' \
  || (tags.\"azd-env-name\"=='$ENVIRONMENT' && tags.\"azd-project-name\"=='acs-token-broker')].name")

printf 'In %s this deletes\n' "$SUBSCRIPTION"
if [ "$PRESENT" = true ]; then
  printf '  the resource group %s with\n' "$GROUP"
  ask resource list --resource-group "$GROUP" --query "[].join(' ', [type, name])" | sed 's/^/    /'
else
  printf '  no resource: there is no resource group %s\n' "$GROUP"
fi
for line in $LOCKS $ASSIGNMENTS $DEPLOYMENTS; do printf '  %s\n' "$line"; done
for line in $SETTINGS; do printf '  the diagnostic setting %s of %s\n' "$line" "$ACS"; done
case $POLICY in
  Locked*) printf '  but not %s: its policy is locked, so it and the group stay until the last backup has expired\n' "$BACKUPS" ;;
  Unlocked*) printf '  the policy that protects the backups in %s\n' "$BACKUPS" ;;
esac
for line in $REGISTRATIONS; do
  name=$(ask ad app list --filter "appId eq '$line'" --query "[].displayName")
  printf '  the registration %s (%s), for good\n' "$line" "${name:-deleted already, or not there}"
done

if [ -z "$DRY_RUN" ] && [ -z "$CONFIRMED" ]; then
  [ -t 0 ] || fail "cannot ask for confirmation: pass --yes $ENVIRONMENT"
  printf 'To go on, type the name of the environment: '
  read -r CONFIRMED
  [ "$CONFIRMED" = "$ENVIRONMENT" ] || fail "nothing was deleted"
fi

for id in $LOCKS; do change az lock delete --ids "$id"; done
for id in $ASSIGNMENTS; do change az role assignment delete --ids "$id"; done
for name in $SETTINGS; do change az monitor diagnostic-settings delete --resource "$ACS" --name "$name"; done
case $POLICY in
  Unlocked*)
    change_at_last "the backups in $BACKUPS are protected" az storage container immutability-policy delete \
      --resource-group "$GROUP" --account-name "$BACKUPS" --container-name mappings-backup --if-match "${POLICY#* }"
    ;;
esac
if [ -n "$PURGE_LOGS" ]; then
  for name in $WORKSPACES; do
    change az monitor log-analytics workspace delete --resource-group "$GROUP" --workspace-name "$name" --force true --yes
  done
fi
if [ "$PRESENT" = true ]; then
  change_at_last "the group $GROUP is not deleted" az group delete --name "$GROUP" --yes
fi

# The records are deleted last: as long as they exist, this script finds what is left.
for name in $DEPLOYMENTS; do change az deployment sub delete --name "$name"; done

# A deleted registration keeps its unique name for 30 days, unless it is deleted a second time.
GRAPH=https://graph.microsoft.com/v1.0
for id in $REGISTRATIONS; do
  principal=$(ask ad sp list --filter "appId eq '$id'" --query "[].id")
  if [ -n "$principal" ]; then
    for assignment in $(ask role assignment list --all --assignee-object-id "$principal" --query "[].id"); do
      change az role assignment delete --ids "$assignment"
    done
  fi
  object=$(ask ad app list --filter "appId eq '$id'" --query "[].id")
  if [ -n "$object" ]; then
    change az ad app delete --id "$object"
  else
    object=$(ask rest --method GET --query "value[?appId=='$id'].id" \
      --url "$GRAPH/directory/deletedItems/microsoft.graph.application?\$select=id,appId&\$top=999")
  fi
  if [ -n "$object" ]; then
    change_at_last "the registration $id is deleted, but keeps its name" \
      az rest --method DELETE --url "$GRAPH/directory/deletedItems/$object"
  else
    printf 'The registration %s does not exist any more.\n' "$id"
  fi
done
