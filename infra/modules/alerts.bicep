// What somebody should hear of. docs/operations.md says what to do about each.

import { alertThresholds } from '../types.bicep'
import { completed } from 'queries.bicep'

@description('Region of the rules.')
param location string

@description('Name of the app whose logs are watched.')
param appName string

@description('Resource id of the workspace with the logs.')
param workspaceId string

@description('Resource id of the ACS resource.')
param acsId string

@description('Name of the action group.')
@minLength(1)
@maxLength(260)
param actionGroupName string

@description('Mail addresses that get the alerts; empty: the alerts show in the portal only.')
param emails string[]

@description('When the alerts fire.')
param thresholds alertThresholds

@description('Tags of the resources.')
param tags object

// Each query gives one number, `value`; the rule fires where it is above `above`.
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
    title: 'Tokens take long'
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
    title: 'Identity mappings need a look'
    severity: 2
    every: 'PT15M'
    window: 'PT30M'
    above: 0
    query: loadTextContent('../queries/alert-mappings-damaged.kql')
  }
  {
    name: 'prune-failed'
    title: 'Pruning failed'
    severity: 2
    every: 'PT1H'
    window: 'PT2H'
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
    name: 'ingestion-capped'
    title: 'The daily cap for logs is reached'
    severity: 2
    every: 'PT15M'
    window: 'PT30M'
    above: 0
    query: loadTextContent('../queries/alert-ingestion-capped.kql')
  }
]

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

resource alerts 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [
  for rule in rules: {
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
      // The longest there is, for the query that looks at 36 hours.
      overrideQueryTimeRange: rule.window == 'P1D' ? 'P2D' : null
      // A new workspace may not know a table before its first row. The tests parse the queries.
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
