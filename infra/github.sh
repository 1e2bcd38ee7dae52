#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Lets a GitHub repository deploy, without a secret: its environment, two identities in Entra that
GitHub's own token opens, their roles in Azure, and the variables of .github/workflows/deploy.yml.

    infra/github.sh [--repository OWNER/NAME] [--reviewer LOGIN | --reviewer ORGANISATION/TEAM]...
                    [--subject-prefix PREFIX] [--dry-run]

    --repository      default: the repository of this folder
    --reviewer        who must agree to each deployment; may be given again
    --subject-prefix  where the repository has a subject claim of its own making, what stands
                      before :environment:... in it
    --dry-run         print each call that changes something, and make none

The variables are those of this shell that infra/production.bicepparam reads, and must be those of
the environment prod: source its file first. One that is not set stays as it is in the repository.

Sign in first with `az login` (Owner or User Access Administrator on the subscription, and in Entra
Application Developer) and `gh auth login` (admin of the repository). A second run changes nothing
but what is no longer as it should be. The identities are known by the variables of the repository,
since anybody in the tenant may give a registration any name.
USAGE
}

fail() { printf 'github.sh: %s\n' "$*" >&2; exit 1; }

HERE=$(cd "$(dirname "$0")" && pwd)
# What .github/workflows/deploy.yml deploys, and from where.
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

# Every call that changes something goes through here. Its input is its first argument; ANSWER is
# what it prints. What was made a moment ago is not known everywhere in Entra at once, so each call
# of Azure's gets a few tries; what GitHub refuses, it goes on refusing.
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
    printf 'Once more in %s seconds.\n' "$pause" >&2
    sleep "$pause"
  done
  fail "this did not work:$shown"
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

# What GitHub itself says it will send as the subject. Repositories that were made, renamed or
# transferred since July 2026 send ids beside the names:
# https://github.blog/changelog/2026-04-23-immutable-subject-claims-for-github-actions-oidc-tokens/
if [ -z "$PREFIX" ]; then
  CLAIM=$(gh api "repos/$REPOSITORY/actions/oidc/customization/sub") ||
    fail "GitHub does not say which subject $REPOSITORY sends; are you an admin of it?"
  PREFIX=$(python3 -c '
import json, sys
claim = json.load(sys.stdin)
if claim.get("use_default", True):
    print(claim.get("sub_claim_prefix") or "repo:" + sys.argv[1])
' "$REPOSITORY" <<<"$CLAIM")
  [ -n "$PREFIX" ] || fail "$REPOSITORY has a subject claim of its own making ($CLAIM); name it with --subject-prefix"
fi

# value_of WHERE NAME; prints a variable of the repository or, where WHERE names one, of an environment.
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

# Registrations and not managed identities: these would lie in a resource group, go with it, and
# get tokens that last for a day (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/managed-identities-faq).
#
# known WHERE NAME CREDENTIAL; sets CLIENT_ID to the registration that the variable AZURE_CLIENT_ID
# names, or to nothing. A name alone makes no registration ours: anybody may take any name, and
# would have what this script gives to it. Nor is one ours that something else can sign in as.
known() {
  local where=$1 name=$2 credential=$3 others secrets
  CLIENT_ID=$(value_of "$where" AZURE_CLIENT_ID)
  if [ -n "$CLIENT_ID" ]; then
    [[ $CLIENT_ID =~ ^[0-9a-fA-F-]{36}$ ]] || fail "AZURE_CLIENT_ID of $REPOSITORY is not a client id: $CLIENT_ID"
    CLIENT_ID=$(ask ad app list --filter "appId eq '$CLIENT_ID'" --query "[].appId") || fail "Entra does not answer"
  fi
  if [ -z "$CLIENT_ID" ]; then
    others=$(ask ad app list --filter "displayName eq '$name'" --query "[].appId") || fail "Entra does not answer"
    [ -z "$others" ] || fail "there is a registration named $name that no variable of $REPOSITORY names: $others
Delete it: az ad app delete --id $others
Or, if you know it to be yours: gh variable set AZURE_CLIENT_ID --repo $REPOSITORY ${where:+--env $where }--body $others"
    return 0
  fi
  secrets=$(ask ad app show --id "$CLIENT_ID" --query "[passwordCredentials, keyCredentials][].keyId") ||
    fail "the secrets of $CLIENT_ID do not show"
  others=$(ask ad app federated-credential list --id "$CLIENT_ID" --query "[?name!='$credential'].name") ||
    fail "the credentials of $CLIENT_ID do not show"
  [ -z "$secrets$others" ] || fail "the registration $CLIENT_ID ($name) has credentials that this script did not make: $secrets $others
Delete them (az ad app credential delete, az ad app federated-credential delete), or have a new
registration made: gh variable delete AZURE_CLIENT_ID --repo $REPOSITORY ${where:+--env $where}"
}

# identity KIND WHERE NAME CREDENTIAL SUBJECT; makes of CLIENT_ID, or of a new registration, what it
# should be. The variable is set at once, so that a second run knows what the first one made.
identity() {
  local kind=$1 where=$2 name=$3 credential=$4 subject=$5 principal found parameters
  local issuer=https://token.actions.githubusercontent.com
  found=
  if [ -z "$CLIENT_ID" ]; then
    # Not `az ad app create`, which takes over what has the name already.
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
printf 'What %s deploys %s with:\n' "$REPOSITORY" "$NAME"
for name in $NAMES; do
  if [ -n "${!name:-}" ]; then
    printf '  %s=%s\n' "$name" "${!name}"
  else
    value=$(value_of "" "$name")
    printf '  %s=%s (not set here: it stays as it is)\n' "$name" "$value"
  fi
done

# The environment. Without its rule for branches, the workflow of any branch could deploy.
IDS=
for reviewer in $REVIEWERS; do
  case $reviewer in
    */*) id=Team:$(gh api "orgs/${reviewer%/*}/teams/${reviewer#*/}" --jq .id) || fail "no such team: $reviewer" ;;
    *) id=User:$(gh api "users/$reviewer" --jq .id) || fail "no such user: $reviewer" ;;
  esac
  IDS="$IDS $id"
done
ENVIRONMENTS=$(gh api "repos/$REPOSITORY/environments?per_page=100") || fail "$REPOSITORY shows no environments"
# Prints what to set; nothing where all is as it should be. What is set already stays: writing an
# environment replaces all of it. What is at its default is left out, as plans refuse what they lack.
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
    sys.stderr.write("Nobody has to agree to a deployment: see --reviewer.\n")
if before != after:
    print(json.dumps({key: value for key, value in after.items() if value}))
' "$ENVIRONMENT" $IDS <<<"$ENVIRONMENTS")
ROUTE=repos/$REPOSITORY/environments/$ENVIRONMENT
if [ -n "$BODY" ]; then change "$BODY" gh api --method PUT "$ROUTE" --input -; fi
BRANCHES=$(gh api "$ROUTE/deployment-branch-policies" --jq '.branch_policies[].name' 2>/dev/null || true)
for branch in $BRANCHES; do
  [ "$branch" = "$BRANCH" ] || printf 'The branch %s may deploy, too.\n' "$branch" >&2
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
