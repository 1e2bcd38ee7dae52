// The workbook: the audit lines, next to ACS's own logs.

import { completed } from 'queries.bicep'

@description('Region of the workbook.')
param location string

@description('Name of the app whose logs are shown.')
param appName string

@description('Resource id of the workspace with the logs.')
param workspaceId string

@description('Resource id of the ACS resource.')
param acsId string

@description('Tags of the workbook.')
param tags object

var panels = [
  {
    title: 'Requests by outcome'
    shownAs: 'areachart'
    query: loadTextContent('../queries/workbook-outcomes.kql')
  }
  {
    title: 'Time to issue a token, and the waits in it, in milliseconds'
    shownAs: 'linechart'
    query: loadTextContent('../queries/workbook-latency.kql')
  }
  {
    title: 'Which requests are slow?'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-slow.kql')
  }
  {
    title: 'Refusals and failures by reason'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-refusals.kql')
  }
  {
    title: 'What the trust policy decides'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-policy.kql')
  }
  {
    title: 'People, and what ACS logged for the same identities'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-people.kql')
  }
  {
    title: 'What ACS logged'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-acs.kql')
  }
  {
    title: 'Pruning'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-pruning.kql')
  }
  {
    title: 'Backups'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-backups.kql')
  }
  {
    title: 'Identities, rows, signing keys and settings'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-incidents.kql')
  }
  {
    title: 'Who wrote to the tables, packages and backups'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-writes.kql')
  }
  {
    title: 'What fills the workspace'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-usage.kql')
  }
  {
    title: 'Who has which identity'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-mappings.kql')
  }
  {
    title: 'Who was erased'
    shownAs: 'table'
    query: loadTextContent('../queries/workbook-erased.kql')
  }
  {
    title: 'Who is this ACS identity?'
    shownAs: 'table'
    query: loadTextContent('../queries/question-identity.kql')
  }
  {
    title: 'What did this user get?'
    shownAs: 'table'
    query: loadTextContent('../queries/question-person.kql')
  }
  {
    title: 'Why was this request refused?'
    shownAs: 'table'
    query: loadTextContent('../queries/question-request.kql')
  }
]

// The workbook puts these in place of {Identity}, {Person} and {Request} in queries.
var questions = [
  { name: 'Identity', label: 'ACS identity (8:acs:...)' }
  { name: 'Person', label: 'Object id of a user' }
  { name: 'Request', label: 'traceId of a request' }
]

// The workbook format's numbers for kinds of items and parameters.
var parametersItem = 9
var queryItem = 3
var textParameter = 1
var timeParameter = 4
var logsQuery = 0

var parameters = {
  type: parametersItem
  name: 'parameters'
  content: {
    version: 'KqlParameterItem/1.0'
    queryType: logsQuery
    resourceType: 'microsoft.operationalinsights/workspaces'
    style: 'pills'
    parameters: concat(
      [
        {
          version: 'KqlParameterItem/1.0'
          id: guid('TimeRange')
          name: 'TimeRange'
          label: 'Time'
          type: timeParameter
          isRequired: true
          value: { durationMs: 86400000 }
          typeSettings: {
            selectableValues: [{ durationMs: 3600000 }, { durationMs: 86400000 }, { durationMs: 604800000 }]
            allowCustom: true
          }
        }
      ],
      map(questions, question => {
        version: 'KqlParameterItem/1.0'
        id: guid(question.name)
        name: question.name
        label: question.label
        type: textParameter
        value: ''
      })
    )
  }
}

var queryItems = map(range(0, length(panels)), position => {
  type: queryItem
  name: 'query-${position}'
  content: {
    version: 'KqlItem/1.0'
    title: panels[position].title
    size: 0 // Medium.
    query: completed(panels[position].query, appName, acsId)
    visualization: panels[position].shownAs
    timeContextFromParameter: 'TimeRange'
    queryType: logsQuery
    resourceType: 'microsoft.operationalinsights/workspaces'
    crossComponentResources: [workspaceId]
    showExportToExcel: true
  }
})

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, appName, 'workbook')
  location: location
  kind: 'shared'
  tags: tags
  properties: {
    displayName: 'Token broker ${appName}'
    category: 'workbook'
    sourceId: workspaceId
    version: 'Notebook/1.0'
    serializedData: string({
      '$schema': 'https://github.com/Microsoft/Application-Insights-Workbooks/blob/master/schema/workbook.json'
      version: 'Notebook/1.0'
      items: concat([parameters], queryItems)
      fallbackResourceIds: [workspaceId]
    })
  }
}
