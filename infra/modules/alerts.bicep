// The alerts. docs/operations.md says what to do about each.

import { alertThresholds } from '../types.bicep'
import { completed } from 'queries.bicep'

@description('Region of the rules.')
param location string

@description('Name of the app that is watched.')
param appName string

@description('URL of the app, without a slash at the end.')
param appUrl string

@description('Locations from which Azure tests the app\'s health every five minutes; empty: no test.')
param availabilityTestLocations string[]

@description('Resource id of the Application Insights component.')
param componentId string

@description('Resource id of the workspace with the logs.')
param workspaceId string

@description('Daily cap of the workspace, in GB; 0: unknown, since the workspace is not new.')
@minValue(0)
param dailyQuotaGb int

@description('Resource id of the ACS resource.')
param acsId string

@description('Resource id of the storage account with the mapping tables.')
param mappingsAccountId string

@description('Name of the storage account with the package; empty: its writes are not logged.')
param packageAccountName string

@description('Name of the action group.')
@minLength(1)
@maxLength(260)
param actionGroupName string

@description('Mail addresses that get the alerts; empty: only the portal shows them.')
param emails string[]

@description('When the alerts fire.')
param thresholds alertThresholds

@description('Tags of the resources.')
param tags object

var tested = !empty(availabilityTestLocations)
var healthTestName = 'health-${appName}'

// Alerts on Azure's own metrics, which need no log. Flex Consumption has no metric for HTTP errors of
// the app, so the availability test stands in. A rule watches each value of its dimension separately.
// https://learn.microsoft.com/azure/azure-monitor/reference/metrics-index
var metricRules = [
  {
    name: 'table-failing'
    severity: 1
    scope: '${mappingsAccountId}/tableServices/default'
    namespace: 'Microsoft.Storage/storageAccounts/tableServices'
    metric: 'Transactions'
    aggregation: 'Total'
    dimension: 'ResponseType'
    values: [
      'AuthorizationError'
      'ClientAccountRequestThrottlingError'
      'ClientThrottlingError'
      'ServerBusyError'
      'ServerOtherError'
      'ServerTimeoutError'
    ]
    above: 10
  }
  {
    name: 'acs-failing'
    severity: 1
    scope: acsId
    namespace: 'Microsoft.Communication/CommunicationServices'
    metric: 'APIRequestAuthentication'
    aggregation: 'Count'
    dimension: 'StatusCode'
    values: ['401', '403', '429', '500', '502', '503', '504']
    above: 10
  }
]

// Azure gives these alerts the lowest severity, and they never resolve: each is an event. A deployment
// also writes the ACS resource, but never uses its keys.
var activityRules = [
  {
    name: 'acs-keys'
    operations: ['ListKeys/action', 'RegenerateKey/action', 'Delete']
  }
  {
    name: 'acs-changed'
    operations: ['Write']
  }
]

// Each query returns one number, `value`; the rule fires if it is greater than `above`. A rule resolves
// by itself once its window holds no more events, so rules on what happens once a night look at a day.
var rules = [
  {
    name: 'server-errors'
    title: 'Requests fail'
    severity: 1
    every: 'PT5M'
    window: 'PT15M'
    above: thresholds.serverErrorPercent
    query: loadTextContent('../queries/alert-server-errors.kql')
  }
  {
    name: 'slow-requests'
    title: 'Issuing tokens is slow'
    severity: 2
    every: 'PT5M'
    window: 'PT15M'
    above: thresholds.slowRequestMs
    query: loadTextContent('../queries/alert-slow-requests.kql')
  }
  {
    name: 'acs-throttled'
    title: 'ACS throttles the broker'
    severity: 2
    every: 'PT5M'
    window: 'PT15M'
    above: 0
    query: loadTextContent('../queries/alert-acs-throttled.kql')
  }
  {
    name: 'acs-denied'
    title: 'ACS refuses the broker'
    severity: 1
    every: 'PT5M'
    window: 'PT15M'
    above: 0
    query: loadTextContent('../queries/alert-acs-denied.kql')
  }
  {
    name: 'settings-invalid'
    title: 'The app settings are wrong'
    severity: 0
    every: 'PT5M'
    window: 'PT15M'
    above: 0
    query: loadTextContent('../queries/alert-settings-invalid.kql')
  }
  {
    name: 'keys-stale'
    title: 'Signing keys are not refreshed'
    severity: 1
    every: 'PT15M'
    window: 'PT30M'
    above: 3 // One start of one instance may fail a few times before it succeeds.
    query: loadTextContent('../queries/alert-keys-stale.kql')
  }
  {
    name: 'mappings-damaged'
    title: 'Identity mappings need attention'
    severity: 2
    every: 'PT15M'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-mappings-damaged.kql')
  }
  {
    name: 'prune-failed'
    title: 'Pruning failed'
    severity: 2
    every: 'PT1H'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-prune-failed.kql')
  }
  {
    name: 'prune-missing'
    title: 'No pruning for 36 hours'
    severity: 2
    every: 'PT1H'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-prune-missing.kql')
  }
  {
    name: 'backup-failed'
    title: 'The backup failed'
    severity: 2
    every: 'PT1H'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-backup-failed.kql')
  }
  {
    name: 'backup-missing'
    title: 'No backup for 26 hours'
    severity: 2
    every: 'PT1H'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-backup-missing.kql')
  }
  {
    name: 'sweep-failed'
    title: 'Erasures and revocations wait'
    severity: 2
    every: 'PT15M'
    // Twice what the query looks at, so that it knows whether the app logged before that.
    window: 'PT2H'
    above: 0
    query: loadTextContent('../queries/alert-sweep-failed.kql')
  }
  {
    name: 'package-written'
    title: 'The code was replaced'
    severity: 2
    every: 'PT15M'
    // Short, so that a deployment does not hide later writes for long.
    window: 'PT1H'
    above: 0
    query: replace(loadTextContent('../queries/alert-package-written.kql'), '{package}', packageAccountName)
  }
  {
    name: 'logs-missing'
    title: 'The app works, but logs nothing'
    severity: 1
    every: 'PT15M'
    window: 'PT1H'
    above: 0
    query: loadTextContent('../queries/alert-logs-missing.kql')
  }
  {
    name: 'ingestion-near-cap'
    title: 'The logs are near the daily cap'
    severity: 2
    every: 'PT1H'
    window: 'P1D'
    above: 800 * dailyQuotaGb // 80 %, in MB.
    query: loadTextContent('../queries/alert-ingestion-near-cap.kql')
  }
  {
    name: 'ingestion-capped'
    title: 'The logs have reached the daily cap'
    severity: 2
    every: 'PT15M'
    window: 'P1D'
    above: 0
    query: loadTextContent('../queries/alert-ingestion-capped.kql')
  }
]

// The first compares with the availability test, the second with the daily cap, and the third reads the
// log of writes to the package.
var useless = concat(
  tested ? [] : ['logs-missing'],
  dailyQuotaGb > 0 ? [] : ['ingestion-near-cap'],
  empty(packageAccountName) ? ['package-written'] : []
)
var useful = filter(rules, rule => !contains(useless, rule.name))

resource actionGroup 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: actionGroupName
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'acs-tokens'
    emailReceivers: [
      for (email, position) in emails: {
        name: 'mail-${position}'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

// A request from outside, which also notices what no log can show: a host that does not start, an app
// that is stopped, a broken certificate.
resource healthTest 'Microsoft.Insights/webtests@2022-06-15' = if (tested) {
  name: healthTestName
  location: location
  kind: 'standard'
  // By this tag the portal shows the test with its component.
  tags: union(tags, { 'hidden-link:${componentId}': 'Resource' })
  properties: {
    SyntheticMonitorId: healthTestName
    Name: healthTestName
    Description: 'docs/operations.md, section "unavailable"'
    Enabled: true
    Kind: 'standard'
    Frequency: 300
    Timeout: 30
    RetryEnabled: true
    Locations: [for testLocation in availabilityTestLocations: { Id: testLocation }]
    Request: {
      RequestUrl: '${appUrl}/api/health'
      HttpVerb: 'GET'
      ParseDependentRequests: false
      // If access is restricted, the app admits the test by this header.
      Headers: [{ key: 'X-Azure-FDID', value: guid(componentId) }]
    }
    ValidationRules: { ExpectedHttpStatusCode: 200, SSLCheck: true }
  }
}

resource unavailable 'Microsoft.Insights/metricAlerts@2018-03-01' = if (tested) {
  name: '${appName}-unavailable'
  location: 'global'
  tags: tags
  properties: {
    description: 'docs/operations.md, section "unavailable"'
    severity: 0
    enabled: true
    scopes: [healthTest.id, componentId]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.WebtestLocationAvailabilityCriteria'
      webTestId: healthTest.id
      componentId: componentId
      // As Microsoft advises: two locations may have trouble of their own.
      failedLocationCount: max(1, length(availabilityTestLocations) - 2)
    }
    actions: [{ actionGroupId: actionGroup.id }]
  }
}

resource metricAlerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for rule in metricRules: {
    name: '${appName}-${rule.name}'
    location: 'global'
    tags: tags
    properties: {
      description: 'docs/operations.md, section "${rule.name}"'
      severity: rule.severity
      enabled: true
      scopes: [rule.scope]
      evaluationFrequency: 'PT5M'
      windowSize: 'PT15M'
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            name: rule.name
            criterionType: 'StaticThresholdCriterion'
            metricNamespace: rule.namespace
            metricName: rule.metric
            timeAggregation: rule.aggregation
            dimensions: [{ name: rule.dimension, operator: 'Include', values: rule.values }]
            operator: 'GreaterThan'
            threshold: rule.above
          }
        ]
      }
      actions: [{ actionGroupId: actionGroup.id }]
    }
  }
]

// An activity log alert watches its own subscription only.
resource activityAlerts 'Microsoft.Insights/activityLogAlerts@2026-01-01' = [
  for rule in activityRules: if (split(acsId, '/')[2] == subscription().subscriptionId) {
    name: '${appName}-${rule.name}'
    location: 'global'
    tags: tags
    properties: {
      description: 'docs/operations.md, section "${rule.name}"'
      enabled: true
      scopes: [acsId]
      condition: {
        allOf: [
          { field: 'category', equals: 'Administrative' }
          { field: 'status', equals: 'Succeeded' }
          {
            anyOf: map(rule.operations, operation => {
              field: 'operationName'
              equals: 'Microsoft.Communication/CommunicationServices/${operation}'
            })
          }
        ]
      }
      actions: { actionGroups: [{ actionGroupId: actionGroup.id }] }
    }
  }
]

resource alerts 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [
  for rule in useful: {
    name: '${appName}-${rule.name}'
    location: location
    kind: 'LogAlert'
    tags: tags
    properties: {
      displayName: '${rule.title} (${appName})'
      description: 'docs/operations.md, section "${rule.name}"'
      severity: rule.severity
      enabled: true
      scopes: [workspaceId]
      evaluationFrequency: rule.every
      windowSize: rule.window
      // The longest that Azure allows, for the queries that look at more than a day.
      overrideQueryTimeRange: contains(['backup-missing', 'prune-failed', 'prune-missing'], rule.name) ? 'P2D' : null
      // A new workspace may lack a table until its first row. The tests parse the queries.
      skipQueryValidation: true
      autoMitigate: true
      criteria: {
        allOf: [
          {
            query: completed(rule.query, appName, acsId)
            metricMeasureColumn: 'value'
            timeAggregation: 'Maximum'
            operator: 'GreaterThan'
            threshold: rule.above
            failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
          }
        ]
      }
      actions: { actionGroups: [actionGroup.id] }
    }
  }
]

@description('Resource id of the action group.')
output actionGroupId string = actionGroup.id
