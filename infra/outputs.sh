#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Prints the outputs of an environment's newest deployment, made by `az` or `azd`.

    eval "$(infra/outputs.sh prod)"           sets a variable for each output
    infra/outputs.sh prod AZURE_FUNCTION_URL  prints one value
    infra/outputs.sh prod --json              prints all as JSON

The environment defaults to $AZURE_ENV_NAME. The subscription is that of `az login`. If the
environment is not found, `eval` unsets the variables, so that no later command uses those of another
environment. Only the outputs that infra/main.bicep declares are printed.
USAGE
}

HERE=$(cd "$(dirname "$0")" && pwd)
OUTPUTS=$(sed -n 's/^output \([A-Z_]*\) .*/ \1/p' "$HERE/main.bicep" | tr -d '\n')
ENVIRONMENT=
NAME=
FORMAT=shell

# After a failure, `eval` runs what this prints.
fail() {
  printf 'outputs.sh: %s\n' "$*" >&2
  if [ "$FORMAT" = shell ]; then printf 'unset%s; false\n' "$OUTPUTS"; fi
  exit 1
}

WRONG=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit ;;
    --json) FORMAT=json ;;
    -*) WRONG="there is no option $argument: infra/outputs.sh --help" ;;
    *_*) # An output has an underscore in its name.
      [ -z "$NAME" ] || WRONG="one output at a time, not $NAME and $argument"
      NAME=$argument FORMAT=value
      ;;
    *)
      [ -z "$ENVIRONMENT" ] || WRONG="one environment at a time, not $ENVIRONMENT and $argument"
      ENVIRONMENT=$argument
      ;;
  esac
done

[ -z "$WRONG" ] || fail "$WRONG"
ENVIRONMENT=${ENVIRONMENT:-${AZURE_ENV_NAME:-}}
[ -n "$ENVIRONMENT" ] || fail "which environment? infra/outputs.sh NAME, or set AZURE_ENV_NAME"
[[ $ENVIRONMENT =~ ^[A-Za-z0-9-]+$ ]] || fail "not the name of an environment: $ENVIRONMENT"
command -v az >/dev/null || fail "install the Azure CLI first: https://aka.ms/azure-cli"

LIST=$(az deployment sub list --output json --query \
  "[].{name: name, tags: tags, state: properties.provisioningState, time: properties.timestamp}") ||
  fail "the deployments could not be listed; did you run \`az login\`, and is it the right subscription?"

# azd names its deployments after the environment and the time, and tags them with the environment
# and, in newer versions, with the project (azure.yaml). `azd down` ends with an empty deployment
# that has the same tags.
FIND='
import json, sys

environment = sys.argv[1]
found, known = [], set()
for deployment in json.load(sys.stdin):
    name, tags = deployment["name"], deployment["tags"] or {}
    by_az = name.startswith("acs-token-broker-") and name[len("acs-token-broker-"):]
    ours = tags.get("azd-project-name", "acs-token-broker") == "acs-token-broker"
    by_azd = ours and tags.get("azd-env-name")
    if environment in (by_az, by_azd) and deployment["state"] == "Succeeded":
        found.append((deployment["time"], name))
    if name != "acs-token-broker-entra" and (by_az or "azd-project-name" in tags and by_azd):
        known.add("%s (%s)" % (by_azd or by_az, deployment["state"]))
print(*(name for _, name in sorted(found, reverse=True)))
print(*sorted(known), sep=", ")
'
FOUND=$(python3 -c "$FIND" "$ENVIRONMENT" <<<"$LIST") || fail "the list of deployments could not be read"
DEPLOYMENTS=${FOUND%%$'\n'*}
KNOWN=${FOUND#*$'\n'}

# Names in upper case, as in main.bicep: Azure returns some as azurE_RESOURCE_GROUP.
PROGRAM='
import json, shlex, sys

environment, form, name, known = sys.argv[1:]
outputs = json.load(sys.stdin) or {}
if not outputs:
    sys.exit(3)
# Other names are left out: they are evaluated, and one might be PATH.
texts = {key.upper(): output["value"] for key, output in outputs.items() if key.upper() in known.split()}
values = {key: text if type(text) is str else json.dumps(text) for key, text in texts.items()}
group = values.get("AZURE_RESOURCE_GROUP")
if group != "rg-acs-token-broker-" + environment:
    print(group or "no resource group of this service")
    sys.exit(4)
if form == "json":
    print(json.dumps(values, indent=2))
elif form == "shell":
    for key in sorted(values):
        print("export " + key + "=" + shlex.quote(values[key]))
elif name in values:
    print(values[name])
else:
    sys.stderr.write("the outputs are " + ", ".join(sorted(values)) + "\n")
    sys.exit(5)
'
OTHERS=
for deployment in $DEPLOYMENTS; do
  RECORD=$(az deployment sub show --name "$deployment" --query properties.outputs --output json) ||
    fail "the deployment $deployment could not be read"
  status=0
  TEXT=$(python3 -c "$PROGRAM" "$ENVIRONMENT" "$FORMAT" "$NAME" "$OUTPUTS" <<<"$RECORD") || status=$?
  case $status in
    0) printf '%s\n' "$TEXT"; exit ;;
    3) fail "the environment $ENVIRONMENT was taken down (the deployment $deployment is empty)" ;;
    4) OTHERS="$OTHERS The deployment $deployment made $TEXT." ;; # Another service's, or a mistake.
    5) fail "there is no output $NAME" ;;
    *) fail "the outputs of the deployment $deployment could not be read" ;;
  esac
done

fail "no deployment of an environment $ENVIRONMENT has succeeded in this subscription. It has: ${KNOWN:-none}.$OTHERS"
