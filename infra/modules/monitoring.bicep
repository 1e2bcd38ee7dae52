// Logs: a workspace, unless one is given, and Application Insights on top of it.

@description('Region of the resources.')
param location string

@description('Name of the new workspace.')
@minLength(4)
@maxLength(63)
param workspaceName string

@description('Name of the Application Insights component.')
@minLength(1)
@maxLength(255)
param componentName string

@description('Resource id of a workspace to use in place of a new one; empty: a new one.')
param existingWorkspaceId string

@description('Most that a new workspace takes in a day, in GB.')
@minValue(1)
param dailyQuotaGb int

@description('Days that a new workspace keeps its data.')
@minValue(30)
@maxValue(730)
param retentionDays int

@description('Take telemetry from a private link scope only. A workspace that is not new is left as it is.')
param privateIngestion bool

@description('Name of the managed identity. Roles are named by it: `what-if` passes over modules with names that are known only later.')
param identityName string

@description('Object id of the managed identity, which roles are given to.')
param principalId string

@description('Tags of the resources.')
param tags object

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = if (empty(existingWorkspaceId)) {
  name: workspaceName
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionDays
    workspaceCapping: { dailyQuotaGb: dailyQuotaGb }
    publicNetworkAccessForIngestion: privateIngestion ? 'Disabled' : 'Enabled'
    features: { disableLocalAuth: true, enableLogAccessUsingOnlyResourcePermissions: true }
  }
}

var existingIdParts = split(empty(existingWorkspaceId) ? workspace.id : existingWorkspaceId, '/')

resource existingWorkspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = if (!empty(existingWorkspaceId)) {
  scope: resourceGroup(existingIdParts[2], existingIdParts[4])
  name: last(existingIdParts)!
}

resource component 'Microsoft.Insights/components@2020-02-02' = {
  name: componentName
  location: location
  kind: 'web'
  tags: tags
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: empty(existingWorkspaceId) ? workspace.id : existingWorkspaceId
    // The connection string alone opens nothing: telemetry is taken from the identity only.
    DisableLocalAuth: true
    publicNetworkAccessForIngestion: privateIngestion ? 'Disabled' : 'Enabled'
  }
}

// Monitoring Metrics Publisher
var metricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb'

resource canWriteTelemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(component.id, identityName, metricsPublisher)
  scope: component
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', metricsPublisher)
  }
}

@description('Resource id of the workspace.')
output workspaceId string = empty(existingWorkspaceId) ? workspace.id : existingWorkspaceId

@description('Resource id of the Application Insights component.')
output componentId string = component.id

@description('Customer id of the workspace: what queries name it by.')
output workspaceCustomerId string = empty(existingWorkspaceId) ? workspace!.properties.customerId : existingWorkspace!.properties.customerId
