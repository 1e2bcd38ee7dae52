#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Lets a GitHub repository deploy, without a secret: its environment, two identities in Entra that
GitHub's own token opens, their roles in Azure, and the variables of .github/workflows/deploy.yml.

    infra/github.sh [--repository OWNER/NAME] [--environment production] [--branch main]
                    [--reviewer LOGIN | --reviewer ORGANISATION/TEAM]... [--dry-run]

    --repository      default: the repository of this folder
    --environment     environment of GitHub that deploys
    --branch          the only branch that may
    --reviewer        who must agree to each deployment; may be given again
    --subject-prefix  where the repository has a subject claim of its own making, what stands
                      before :environment:... in it
    --dry-run         print each call that changes something, and make none

The variables are those of this shell that infra/production.bicepparam reads: AZURE_LOCATION and
ENTRA_CLIENT_ID, and where they are set the others, such as ENTRA_APPLICATION_ID_URI, ENTRA_TENANT_IDS,
ALLOWED_ORIGINS and ALERT_EMAILS.

Sign in first with `az login` (Owner or User Access Administrator on the subscription, and in Entra
Application Developer) and `gh auth login` (admin of the repository). A second run changes nothing
but what is no longer as it should be.
USAGE
}

fail() { printf 'github.sh: %s\n' "$*" >&2; exit 1; }

HERE=$(cd "$(dirname "$0")" && pwd)
REPOSITORY=
ENVIRONMENT=production
BRANCH=main
REVIEWERS=
PREFIX=
DRY_RUN=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dry-run) DRY_RUN=--dry-run ;;
    --repository | --environment | --branch | --reviewer | --subject-prefix)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case $1 in
        --repository) REPOSITORY=$2 ;;
        --environment) ENVIRONMENT=$2 ;;
        --branch) BRANCH=$2 ;;
        --reviewer) REVIEWERS="$REVIEWERS $2" ;;
        --subject-prefix) PREFIX=$2 ;;
      esac
      shift
      ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
: "${AZURE_LOCATION:?github.sh: set AZURE_LOCATION, such as swedencentral}"
: "${ENTRA_CLIENT_ID:?github.sh: set ENTRA_CLIENT_ID, from the registration of the broker}"

# Every call that changes something goes through here. Its input is its first argument. What was
# made a moment ago is not known everywhere in Entra at once, so each call gets a few tries.
change() {
  local input=$1 shown pause
  shift
  shown=$(printf ' %q' "$@")
  printf '+%s%s\n' "$shown" "${input:+ <<< $input}"
  [ -z "$DRY_RUN" ] || return 0
  for pause in 5 10 20 40; do
    if "$@" <<<"$input" >/dev/null; then return 0; fi
    printf 'Once more in %s seconds.\n' "$pause" >&2
    sleep "$pause"
  done
  "$@" <<<"$input" >/dev/null || fail "this did not work:$shown"
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
[[ $ENVIRONMENT =~ ^[A-Za-z0-9_-]+$ ]] || fail "not a name of letters, digits, - and _: $ENVIRONMENT"

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

# Registrations and not managed identities: these would lie in a resource group, go with it, and
# get tokens that last for a day (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/managed-identities-faq).
# identity KIND NAME CREDENTIAL SUBJECT; sets CLIENT_ID.
identity() {
  local kind=$1 name=$2 credential=$3 subject=$4 principal found parameters
  CLIENT_ID=$(ask ad app list --filter "displayName eq '$name'" --query "[].appId")
  case $CLIENT_ID in
    *[[:space:]]*) fail "there are several registrations named $name: delete all but one" ;;
    "")
      change "" az ad app create --display-name "$name" --sign-in-audience AzureADMyOrg
      if [ -n "$DRY_RUN" ]; then
        CLIENT_ID="<client id of $name>"
      else
        CLIENT_ID=$(created ad app list --filter "displayName eq '$name'" --query "[].appId")
      fi
      ;;
  esac
  principal=$(ask ad sp list --filter "appId eq '$CLIENT_ID'" --query "[].id")
  if [ -z "$principal" ]; then
    change "" az ad sp create --id "$CLIENT_ID"
    if [ -n "$DRY_RUN" ]; then
      principal="<object id of $name>"
    else
      principal=$(created ad sp list --filter "appId eq '$CLIENT_ID'" --query "[].id")
    fi
  fi
  parameters=$(python3 -c '
import json, sys
issuer = "https://token.actions.githubusercontent.com"
name, subject = sys.argv[1:]
print(json.dumps({"name": name, "issuer": issuer, "subject": subject, "audiences": ["api://AzureADTokenExchange"]}))
' "$credential" "$subject")
  # In a dry run, a registration that is not there has no credential either.
  found=$(ask ad app federated-credential list --id "$CLIENT_ID" --query "[?name=='$credential'].subject" 2>/dev/null || true)
  if [ -z "$found" ]; then
    change "" az ad app federated-credential create --id "$CLIENT_ID" --parameters "$parameters"
  elif [ "$found" != "$subject" ]; then
    change "" az ad app federated-credential update --id "$CLIENT_ID" --federated-credential-id "$credential" --parameters "$parameters"
  fi
  "$HERE/roles.sh" "$kind" "$principal" --type ServicePrincipal $DRY_RUN
}

# Ask until what was made shows.
created() {
  local pause found
  for pause in 2 4 8 16 32; do
    found=$(ask "$@")
    if [ -n "$found" ]; then printf '%s\n' "$found"; return; fi
    sleep "$pause"
  done
  fail "what was made does not show; run this again"
}

identity reader "acs-token-broker reader ($REPOSITORY)" pull-requests "$PREFIX:pull_request"
READER=$CLIENT_ID
identity deployer "acs-token-broker deployer ($REPOSITORY $ENVIRONMENT)" "$ENVIRONMENT" "$PREFIX:environment:$ENVIRONMENT"
DEPLOYER=$CLIENT_ID

# variable WHERE NAME VALUE
variable() {
  local where=$1 name=$2 value=$3 found
  found=$(gh variable list --repo "$REPOSITORY" ${where:+--env "$where"} --json name,value 2>/dev/null || echo '[]')
  found=$(python3 -c '
import json, sys
print(*(each["value"] for each in json.load(sys.stdin) if each["name"] == sys.argv[1]))
' "$name" <<<"$found")
  [ "$found" = "$value" ] || change "" gh variable set "$name" --repo "$REPOSITORY" ${where:+--env "$where"} --body "$value"
}

variable "" AZURE_TENANT_ID "$TENANT"
variable "" AZURE_SUBSCRIPTION_ID "$SUBSCRIPTION"
NAMES=$(sed -n "s/.*readEnvironmentVariable('\([A-Z_]*\)'.*/\1/p" "$HERE/production.bicepparam")
for name in $NAMES; do
  if [ -n "${!name:-}" ]; then variable "" "$name" "${!name}"; fi
done
variable "$ENVIRONMENT" AZURE_CLIENT_ID "$DEPLOYER"
# The last one, since the workflow does nothing until it is set.
variable "" AZURE_CLIENT_ID "$READER"
printf 'Done: %s deploys from %s as %s, and shows what would change as %s.\n' "$REPOSITORY" "$BRANCH" "$DEPLOYER" "$READER"
