from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALERTS = (ROOT / "infra/modules/alerts.bicep").read_text()
MAIN = (ROOT / "infra/main.bicep").read_text()
PRICES = " ".join((ROOT / "docs/deploy.md").read_text().split())
UNITS = {"M": "minutes", "H": "hours", "D": "days"}

# https://learn.microsoft.com/azure/azure-monitor/app/availability#location-population-tags
LOCATIONS = set(
    "apac-hk-hkn-azr apac-jp-kaw-edge apac-sg-sin-azr emea-au-syd-edge emea-ch-zrh-edge"
    " emea-fr-pra-edge emea-gb-db3-azr emea-nl-ams-azr emea-ru-msa-edge emea-se-sto-edge"
    " latam-br-gru-edge us-ca-sjc-azr us-fl-mia-edge us-il-ch1-azr us-tx-sn1-azr"
    " us-va-ash-azr".split()
)
# https://learn.microsoft.com/azure/azure-monitor/reference/metrics-index
METRICS = {
    "Microsoft.Communication/CommunicationServices": ("APIRequestAuthentication", "StatusCode"),
    "Microsoft.Storage/storageAccounts/tableServices": ("Transactions", "ResponseType"),
}
# https://learn.microsoft.com/azure/role-based-access-control/permissions/web-and-mobile
ACS_OPERATIONS = {"Delete", "ListKeys/action", "RegenerateKey/action", "Write"}
ONCE_A_DAY = {"prune-failed", "backup-failed", "mappings-damaged", "ingestion-capped"}


def blocks(variable: str) -> list[dict[str, str]]:
    """Return the rules in one of the variables, with their simple members as written."""
    body = re.search(rf"^var {variable} = \[\n(.*?)^\]", ALERTS, re.MULTILINE | re.DOTALL)
    assert body
    rules = re.findall(r"^  \{\n(.*?)^  \}", body[1], re.MULTILINE | re.DOTALL)
    return [dict(re.findall(r"^    (\w+): '?([^'\n]+?)'?$", rule, re.MULTILINE)) for rule in rules]


def listed(variable: str, member: str) -> list[list[str]]:
    """Return a member of each rule that is a list of strings."""
    body = re.search(rf"^var {variable} = \[\n(.*?)^\]", ALERTS, re.MULTILINE | re.DOTALL)
    assert body
    return [
        re.findall(r"'([^']+)'", found)
        for found in re.findall(rf"^    {member}: \[(.*?)\]", body[1], re.MULTILINE | re.DOTALL)
    ]


def duration(text: str) -> timedelta:
    """Return an ISO 8601 duration of one member."""
    found = re.fullmatch(r"PT?(\d+)([MHD])", text)
    assert found, text
    return timedelta(**{UNITS[found[2]]: int(found[1])})


RULES = {rule["name"]: rule for rule in blocks("rules")}


class TestLogs:
    """Rules that query the workspace."""

    @pytest.mark.parametrize("name", RULES)
    def test_no_gap(self, name: str) -> None:
        """A rule's windows leave no gap between two evaluations."""
        assert duration(RULES[name]["every"]) <= duration(RULES[name]["window"])

    @pytest.mark.parametrize("name", sorted(ONCE_A_DAY))
    def test_all_day(self, name: str) -> None:
        """An alert on what happens once a night fires until the next night."""
        assert timedelta(days=1) == duration(RULES[name]["window"])

    @pytest.mark.parametrize(("name", "hours"), [("prune-missing", 36), ("backup-missing", 26)])
    def test_new_environment(self, name: str, hours: int) -> None:
        """The alert for a missing run looks at some hours, of an app that has logged for longer."""
        query = (ROOT / f"infra/queries/alert-{name}.kql").read_text()
        found = [int(found) for found in re.findall(r"ago\((\d+)h\)", query)]
        assert [hours, hours] == found
        assert f"isnull(logged_since) or logged_since < ago({hours}h)" in query

    def test_long_queries(self) -> None:
        """The queries that look at more than a day may."""
        rule = re.search(r"overrideQueryTimeRange: contains\(\[(.*)\], rule.name\)", ALERTS)
        assert rule
        assert ["backup-missing", "prune-failed", "prune-missing"] == re.findall("'(.*?)'", rule[1])

    def test_prune_out_of_time(self) -> None:
        """Two runs in a row that their time ended ring; what else rings is of the last day."""
        query = (ROOT / "infra/queries/alert-prune-failed.kql").read_text()
        assert "last_day = TimeGenerated > ago(1d)" in query
        assert 3 == query.count("countif(last_day and")
        assert "iff(out_of_time >= 2 and finished == 0, out_of_time, 0)" in query

    def test_sweep(self) -> None:
        """The window is long enough to tell a sweep that is missing from an app that is new."""
        query = (ROOT / "infra/queries/alert-sweep-failed.kql").read_text()
        assert 2 == query.count("ago(1h)")
        assert duration(RULES["sweep-failed"]["window"]) > timedelta(hours=1)
        schedule = re.search(
            r'^SWEEP_SCHEDULE = "0 \*/(\d+) \* \* \* \*"',
            (ROOT / "function_app.py").read_text(),
            re.MULTILINE,
        )
        assert schedule
        assert int(schedule[1]) <= 15  # Several runs in an hour: one may fail.

    def test_near_cap(self) -> None:
        """The warning comes at 80 % of the cap, which is in GB, while the table has MB."""
        assert RULES["ingestion-near-cap"]["above"] == "800 * dailyQuotaGb // 80 %, in MB."


class TestNoLogs:
    """Rules that need no logs."""

    def test_metrics(self) -> None:
        """Azure documents each metric and its dimension for the resource."""
        rules = blocks("metricRules")
        assert {"table-failing", "acs-failing"} == {rule["name"] for rule in rules}
        for rule in rules:
            assert METRICS[rule["namespace"]] == (rule["metric"], rule["dimension"])

    def test_operations(self) -> None:
        """The operations on the ACS resource are those that Azure lists."""
        named = [name for names in listed("activityRules", "operations") for name in names]
        assert sorted(ACS_OPERATIONS) == sorted(named)

    def test_path(self) -> None:
        """The availability test calls a route that exists and changes nothing."""
        assert "RequestUrl: '${appUrl}/api/health'" in ALERTS
        assert '@app.route(route="health")' in (ROOT / "function_app.py").read_text()

    def test_locations(self) -> None:
        """It runs from five of Azure's locations, the minimum that Microsoft advises."""
        default = re.search(
            r"^param availabilityTestLocations .*?^\]", MAIN, re.MULTILINE | re.DOTALL
        )
        assert default
        locations = re.findall(r"^  '([\w-]+)'", default[0], re.MULTILINE)
        assert len(locations) == 5
        assert set(locations) <= LOCATIONS

    def test_not_by_http_metrics(self) -> None:
        """Flex Consumption has no metrics of HTTP answers: a rule on one would never fire."""
        assert not re.search(r"Http\dxx|'Requests'|HttpResponseTime", ALERTS)


def test_action_group() -> None:
    """Every kind of alert notifies the action group."""
    kinds = re.findall(r"'Microsoft\.Insights/(\w*[aA]lerts|scheduledQueryRules)@", ALERTS)
    assert 4 == len(kinds) == ALERTS.count("actionGroup.id }]") + ALERTS.count("[actionGroup.id]")


def test_prices() -> None:
    """The deployment page has the right numbers of rules."""
    often = sum(rule["every"] == "PT5M" for rule in RULES.values())
    series = 1 + sum(len(values) for values in listed("metricRules", "values"))
    assert (5, 11) == (often, len(RULES) - often)
    assert "five rules each 5 minutes × $1.50, eleven rarer ones × $0.50" in PRICES
    assert f"{series} time series, 10 free" in PRICES
