// The Functions host's own storage: leases, the timer's state, its keys.

@description('Region of the account.')
param location string

@description('Name of the account, unique in all of Azure.')
@minLength(3)
@maxLength(24)
param name string

@description('How the account is replicated.')
param sku string

@description('Closed to the internet; private endpoints are the only way in.')
param private bool

@description('Name of the app\'s identity. The role assignment is named after it, since `what-if` skips modules with names that are unknown before a deployment.')
param identityName string

@description('Object id of the app\'s identity, to which the role is assigned.')
param principalId string

@description('Tags of the account.')
param tags object

module storage 'storage.bicep' = {
  params: { location: location, name: name, sku: sku, private: private, tags: tags }
}

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' existing = {
  name: name
}

// Storage Blob Data Owner, as the Functions host requires. The host makes its own containers, so the role
// is assigned on the whole account, and nothing else is kept in it.
var blobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'

resource canUseBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, identityName, blobDataOwner)
  scope: account
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataOwner)
  }
  dependsOn: [storage]
}

@description('Resource id of the account.')
output id string = storage.outputs.id

@description('Blob endpoint, with a slash at the end.')
output blobEndpoint string = storage.outputs.blobEndpoint
