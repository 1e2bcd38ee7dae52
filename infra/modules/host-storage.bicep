// What the Functions host keeps for itself: leases, the timer's state, its own keys.

@description('Region of the account.')
param location string

@description('Name of the account, unique in all of Azure.')
@minLength(3)
@maxLength(24)
param name string

@description('How many copies there are, and where.')
param sku string

@description('Closed to the internet; private endpoints are the only way in.')
param private bool

@description('Name of the app\'s identity. Roles are named by it: `what-if` passes over modules with names that are known only later.')
param identityName string

@description('Object id of the app\'s identity, which the role is given to.')
param principalId string

@description('Tags of the account.')
param tags object

module storage 'storage.bicep' = {
  params: { location: location, name: name, sku: sku, private: private, tags: tags }
}

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' existing = {
  name: name
}

// Storage Blob Data Owner: what the Functions host asks for. It makes containers of its own, so the role
// stands on the account, which is why nothing else is kept here.
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
