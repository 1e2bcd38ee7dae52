// Logs: a workspace, unless an existing one is given, and Application Insights, which writes to it.

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

@description('Resource id of a workspace to use instead of a new one; empty: a new one.')
param existingWorkspaceId string

@description('Daily cap of a new workspace, in GB.')
@minValue(1)
param dailyQuotaGb int

@description('Days that a new workspace keeps its data.')
@minValue(30)
@maxValue(730)
param retentionDays int

@description('Take telemetry only from a private link scope. An existing workspace is not changed.')
param privateIngestion bool

@description('Name of the managed identity. The role assignment is named after it, since `what-if` skips modules with names that are unknown before a deployment.')
param identityName string

@description('Object id of the managed identity, to which the role is assigned.')
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
    // The connection string is not enough to write telemetry: that takes the identity.
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

@description('Customer id of the workspace, which queries need.')
output workspaceCustomerId string = empty(existingWorkspaceId) ? workspace!.properties.customerId : existingWorkspace!.properties.customerId
