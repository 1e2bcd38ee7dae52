#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Lets a GitHub repository deploy without a secret. It sets up the repository's environment, two
identities in Entra that trust GitHub's own tokens, their roles in Azure, and the variables of
.github/workflows/deploy.yml.

    infra/github.sh [--repository OWNER/NAME] [--reviewer LOGIN | --reviewer ORGANISATION/TEAM]...
                    [--subject-prefix PREFIX] [--dry-run]

    --repository      default: the repository of this folder
    --reviewer        who must approve each deployment; may be given several times
    --subject-prefix  the part before :environment:... of the subject claim, if the repository
                      has customised that claim
    --dry-run         print each call that changes something, and make none

It takes the variables that infra/production.bicepparam reads from this shell. They must be those of
the environment prod: source its file first. A variable that is not set here stays as it is in the
repository.

Sign in first with `az login` (Owner or User Access Administrator on the subscription, and in Entra
Application Developer) and `gh auth login` (admin of the repository). A second run changes only what
is no longer as it should be. The repository's variables, not names, identify the registrations, since
anybody in the tenant can give a registration any name.
USAGE
}

fail() { printf 'github.sh: %s\n' "$*" >&2; exit 1; }

HERE=$(cd "$(dirname "$0")" && pwd)
# The environment that .github/workflows/deploy.yml deploys, and the branch.
NAME=prod
ENVIRONMENT=production
BRANCH=main
REPOSITORY=
REVIEWERS=
PREFIX=
DRY_RUN=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dry-run) DRY_RUN=--dry-run ;;
    --repository | --reviewer | --subject-prefix)
      case ${2:--} in -*) fail "$1 needs a value" ;; esac
      case $1 in
        --repository) REPOSITORY=$2 ;;
        --reviewer) REVIEWERS="$REVIEWERS $2" ;;
        --subject-prefix) PREFIX=$2 ;;
      esac
      shift
      ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ "${AZURE_ENV_NAME:-}" = "$NAME" ] ||
  fail "the workflow deploys $NAME, and this shell has AZURE_ENV_NAME=${AZURE_ENV_NAME:-}: source ./$NAME.env first"
: "${AZURE_LOCATION:?github.sh: set AZURE_LOCATION, such as swedencentral}"
: "${ENTRA_CLIENT_ID:?github.sh: set ENTRA_CLIENT_ID, from the registration of the broker}"
: "${ENTRA_APPLICATION_ID_URI:?github.sh: set ENTRA_APPLICATION_ID_URI, from the registration of the broker}"

# Every call that changes something goes through here. The first argument is the call's input; ANSWER is
# set to its output. A new object is not known everywhere in Entra at once, so calls to Azure are retried;
# GitHub's refusals are final.
change() {
  local input=$1 shown pause
  shift
  shown=$(printf ' %q' "$@")
  printf '+%s%s\n' "$shown" "${input:+ <<< $input}"
  ANSWER=
  [ -z "$DRY_RUN" ] || return 0
  for pause in 5 10 20 40 ""; do
    if ANSWER=$("$@" <<<"$input" | tr -d '\r'); then return 0; fi
    if [ "$1" != az ] || [ -z "$pause" ]; then break; fi
    printf 'Trying again in %s seconds.\n' "$pause" >&2
    sleep "$pause"
  done
  fail "this command failed:$shown"
}

ask() { az "$@" --output tsv | tr -d '\r'; }

ACCOUNT=$(ask account show --query "[id, tenantId] | join(' ', @)") || fail "sign in first: az login"
SUBSCRIPTION=${ACCOUNT% *}
TENANT=${ACCOUNT#* }
gh auth status >/dev/null 2>&1 || fail "sign in first: gh auth login"
# The name as GitHub spells it: Entra compares subjects letter by letter.
REPOSITORY=$(gh repo view ${REPOSITORY:+"$REPOSITORY"} --json nameWithOwner --jq .nameWithOwner) ||
  fail "which repository? --repository OWNER/NAME"
[[ $REPOSITORY =~ ^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$ ]] || fail "not OWNER/NAME: $REPOSITORY"

# The subject that GitHub says it will send. Repositories that were created, renamed or transferred
# since July 2026 send ids after the names:
# https://github.blog/changelog/2026-04-23-immutable-subject-claims-for-github-actions-oidc-tokens/
if [ -z "$PREFIX" ]; then
  CLAIM=$(gh api "repos/$REPOSITORY/actions/oidc/customization/sub") ||
    fail "GitHub did not say which subject $REPOSITORY sends; are you an admin of it?"
  PREFIX=$(python3 -c '
import json, sys
claim = json.load(sys.stdin)
if claim.get("use_default", True):
    print(claim.get("sub_claim_prefix") or "repo:" + sys.argv[1])
' "$REPOSITORY" <<<"$CLAIM")
  [ -n "$PREFIX" ] || fail "$REPOSITORY has customised its subject claim ($CLAIM); name its prefix with --subject-prefix"
fi

# value_of WHERE NAME; prints a variable of the repository or, if WHERE names an environment, of that.
value_of() {
  local found
  found=$(gh variable list --repo "$REPOSITORY" ${1:+--env "$1"} --json name,value 2>/dev/null || echo '[]')
  python3 -c '
import json, sys
print(*(each["value"] for each in json.load(sys.stdin) if each["name"] == sys.argv[1]))
' "$2" <<<"$found"
}

# variable WHERE NAME VALUE
variable() {
  [ "$(value_of "$1" "$2")" = "$3" ] || change "" gh variable set "$2" --repo "$REPOSITORY" ${1:+--env "$1"} --body "$3"
}

# Registrations, not managed identities, which would be deleted with their resource group, and get
# tokens that last for a day (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/managed-identities-faq).
#
# known WHERE NAME CREDENTIAL; sets CLIENT_ID to the registration that the variable AZURE_CLIENT_ID
# names, or to nothing. A matching display name is not enough: anybody can take any name, and would get
# the roles that this script assigns. A registration that has other credentials is refused, too.
known() {
  local where=$1 name=$2 credential=$3 others secrets
  CLIENT_ID=$(value_of "$where" AZURE_CLIENT_ID)
  if [ -n "$CLIENT_ID" ]; then
    [[ $CLIENT_ID =~ ^[0-9a-fA-F-]{36}$ ]] || fail "AZURE_CLIENT_ID of $REPOSITORY is not a client id: $CLIENT_ID"
    CLIENT_ID=$(ask ad app list --filter "appId eq '$CLIENT_ID'" --query "[].appId") || fail "Entra did not answer"
  fi
  if [ -z "$CLIENT_ID" ]; then
    others=$(ask ad app list --filter "displayName eq '$name'" --query "[].appId") || fail "Entra did not answer"
    [ -z "$others" ] || fail "there is a registration named $name, but no variable of $REPOSITORY has its id: $others
Delete it: az ad app delete --id $others
Or, if you know it to be yours: gh variable set AZURE_CLIENT_ID --repo $REPOSITORY ${where:+--env $where }--body $others"
    return 0
  fi
  secrets=$(ask ad app show --id "$CLIENT_ID" --query "[passwordCredentials, keyCredentials][].keyId") ||
    fail "the secrets of $CLIENT_ID could not be listed"
  others=$(ask ad app federated-credential list --id "$CLIENT_ID" --query "[?name!='$credential'].name") ||
    fail "the federated credentials of $CLIENT_ID could not be listed"
  [ -z "$secrets$others" ] || fail "the registration $CLIENT_ID ($name) has credentials that this script did not make: $secrets $others
Delete them (az ad app credential delete, az ad app federated-credential delete), or let this script
make a new registration: gh variable delete AZURE_CLIENT_ID --repo $REPOSITORY ${where:+--env $where}"
}

# identity KIND WHERE NAME CREDENTIAL SUBJECT; sets up the registration CLIENT_ID, or a new one. The
# variable is set at once, so that a second run recognises the registration.
identity() {
  local kind=$1 where=$2 name=$3 credential=$4 subject=$5 principal found parameters
  local issuer=https://token.actions.githubusercontent.com
  found=
  if [ -z "$CLIENT_ID" ]; then
    # Not `az ad app create`, which takes over an existing registration of that name.
    change "" az rest --method POST --url https://graph.microsoft.com/v1.0/applications --query appId --output tsv \
      --body "{\"displayName\": \"$name\", \"signInAudience\": \"AzureADMyOrg\"}"
    CLIENT_ID=${ANSWER:-<client id of $name>}
  else
    [ "$(ask ad app show --id "$CLIENT_ID" --query displayName)" = "$name" ] ||
      change "" az ad app update --id "$CLIENT_ID" --display-name "$name"
    found=$(ask ad app federated-credential list --id "$CLIENT_ID" --query "[].[issuer, subject]")
  fi
  variable "$where" AZURE_CLIENT_ID "$CLIENT_ID"
  principal=$(ask ad sp list --filter "appId eq '$CLIENT_ID'" --query "[].id")
  if [ -z "$principal" ]; then
    change "" az ad sp create --id "$CLIENT_ID" --query id --output tsv
    principal=${ANSWER:-<object id of $name>}
  fi
  parameters=$(python3 -c '
import json, sys
name, issuer, subject = sys.argv[1:]
print(json.dumps({"name": name, "issuer": issuer, "subject": subject, "audiences": ["api://AzureADTokenExchange"]}))
' "$credential" "$issuer" "$subject")
  if [ -z "$found" ]; then
    change "" az ad app federated-credential create --id "$CLIENT_ID" --parameters "$parameters"
  elif [ "$found" != "$issuer"$'\t'"$subject" ]; then
    change "" az ad app federated-credential update --id "$CLIENT_ID" --federated-credential-id "$credential" --parameters "$parameters"
  fi
  "$HERE/roles.sh" "$kind" "$principal" --type ServicePrincipal $DRY_RUN
}

READER_NAME="acs-token-broker reader ($REPOSITORY)"
DEPLOYER_NAME="acs-token-broker deployer ($REPOSITORY $ENVIRONMENT)"
known "" "$READER_NAME" pull-requests
READER=$CLIENT_ID
known "$ENVIRONMENT" "$DEPLOYER_NAME" "$ENVIRONMENT"
DEPLOYER=$CLIENT_ID

NAMES=$(sed -n "s/.*readEnvironmentVariable('\([A-Z_]*\)'.*/\1/p" "$HERE/production.bicepparam" | grep -vx AZURE_ENV_NAME)
printf '%s deploys %s with:\n' "$REPOSITORY" "$NAME"
for name in $NAMES; do
  if [ -n "${!name:-}" ]; then
    printf '  %s=%s\n' "$name" "${!name}"
  else
    value=$(value_of "" "$name")
    printf '  %s=%s (not set here: it stays as it is)\n' "$name" "$value"
  fi
done

# The environment. Without its rule for branches, a workflow on any branch could deploy.
IDS=
for reviewer in $REVIEWERS; do
  case $reviewer in
    */*) id=Team:$(gh api "orgs/${reviewer%/*}/teams/${reviewer#*/}" --jq .id) || fail "no such team: $reviewer" ;;
    *) id=User:$(gh api "users/$reviewer" --jq .id) || fail "no such user: $reviewer" ;;
  esac
  IDS="$IDS $id"
done
ENVIRONMENTS=$(gh api "repos/$REPOSITORY/environments?per_page=100") || fail "the environments of $REPOSITORY could not be listed"
# Prints the settings to write, or nothing if all is as it should be. They include the present settings,
# since writing an environment replaces all of it. Defaults are left out, since GitHub refuses settings
# that the plan does not include.
# shellcheck disable=SC2086 # A word for each reviewer.
BODY=$(python3 -c '
import json, sys
name, *wanted = sys.argv[1:]
found = [e for e in json.load(sys.stdin)["environments"] if e["name"] == name]
rules = {rule["type"]: rule for environment in found for rule in environment["protection_rules"]}
review = rules.get("required_reviewers", {})
before = {
    "wait_timer": rules.get("wait_timer", {}).get("wait_timer", 0),
    "prevent_self_review": review.get("prevent_self_review", False),
    "reviewers": [{"type": r["type"], "id": r["reviewer"]["id"]} for r in review.get("reviewers", [])],
    "deployment_branch_policy": found[0]["deployment_branch_policy"] if found else None,
}
after = dict(before, deployment_branch_policy={"protected_branches": False, "custom_branch_policies": True})
pairs = [text.split(":") for text in wanted]
new = [{"type": kind, "id": int(number)} for kind, number in pairs]
after["reviewers"] = before["reviewers"] + [each for each in new if each not in before["reviewers"]]
if not after["reviewers"]:
    sys.stderr.write("Nobody has to approve deployments: see --reviewer.\n")
if before != after:
    print(json.dumps({key: value for key, value in after.items() if value}))
' "$ENVIRONMENT" $IDS <<<"$ENVIRONMENTS")
ROUTE=repos/$REPOSITORY/environments/$ENVIRONMENT
if [ -n "$BODY" ]; then change "$BODY" gh api --method PUT "$ROUTE" --input -; fi
BRANCHES=$(gh api "$ROUTE/deployment-branch-policies" --jq '.branch_policies[].name' 2>/dev/null || true)
for branch in $BRANCHES; do
  [ "$branch" = "$BRANCH" ] || printf 'The branch %s may also deploy.\n' "$branch" >&2
done
if ! grep -qxF "$BRANCH" <<<"$BRANCHES"; then
  change "" gh api --method POST "$ROUTE/deployment-branch-policies" --raw-field "name=$BRANCH"
fi

variable "" AZURE_TENANT_ID "$TENANT"
variable "" AZURE_SUBSCRIPTION_ID "$SUBSCRIPTION"
for name in $NAMES; do
  if [ -n "${!name:-}" ]; then variable "" "$name" "${!name}"; fi
done
CLIENT_ID=$DEPLOYER
identity deployer "$ENVIRONMENT" "$DEPLOYER_NAME" "$ENVIRONMENT" "$PREFIX:environment:$ENVIRONMENT"
DEPLOYER=$CLIENT_ID
# The last one, since the workflow does nothing until its variable is set.
CLIENT_ID=$READER
identity reader "" "$READER_NAME" pull-requests "$PREFIX:pull_request"
READER=$CLIENT_ID
printf 'Done: %s deploys from %s as %s, and shows what would change as %s.\n' "$REPOSITORY" "$BRANCH" "$DEPLOYER" "$READER"
