// Gives the broker access to an ACS resource of this resource group, new or not.

@description('Name of the ACS resource.')
param name string

@description('Name of the managed identity. Role assignments are named after it, since `what-if` skips modules with names that are unknown before a deployment.')
param identityName string

@description('Object id of the managed identity, to which roles are assigned.')
param principalId string

@description('Resource id of the workspace that gets the logs.')
param workspaceId string

@description('Send the log of each call to the workspace. Azure sends a log to a workspace only once: false if Azure Policy sends it there already, or for a second broker on the same ACS resource and workspace.')
param diagnostics bool

@description('Name of the diagnostic setting; one ACS resource can serve several brokers.')
@minLength(1)
@maxLength(260)
param diagnosticName string

resource service 'Microsoft.Communication/communicationServices@2026-03-18' existing = {
  name: name
}

// Communication and Email Service Owner. ACS documents no smaller role that can issue tokens: access to
// its data plane takes actions on the resource. The role allows much more than is needed: to turn the
// access keys on again and list them, and to delete the resource with every identity. The lock on the
// resource prevents the last of these; docs/security.md says what detects the others.
var communicationOwner = '09976791-48a7-449e-bb21-39d1a415f350'

resource canIssueTokens 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(service.id, identityName, communicationOwner)
  scope: service
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', communicationOwner)
  }
}

resource authLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (diagnostics) {
  name: diagnosticName
  scope: service
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'AuthOperational', enabled: true }
    ]
  }
}

@description('Resource id of the ACS resource.')
output id string = service.id

@description('Endpoint of the ACS resource.')
output endpoint string = 'https://${service.properties.hostName}'

@description('Immutable id: the part after 8:acs: in each identity.')
output immutableResourceId string = service.properties.immutableResourceId
