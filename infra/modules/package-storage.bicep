// Storage for the app's package: one container, which deployments write and starting instances read.

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

@description('Name of the identity that deployments use. The role assignment is named after it, since `what-if` skips modules with names that are unknown before a deployment.')
param identityName string

@description('Object id of the identity that deployments use, to which the role is assigned.')
param principalId string

@description('Send the log of each change to the workspace.')
param diagnostics bool

@description('Resource id of the workspace that gets the log.')
param workspaceId string

@description('Tags of the account.')
param tags object

module storage 'storage.bicep' = {
  params: { location: location, name: name, sku: sku, private: private, tags: tags }
}

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' existing = {
  name: name
}

// A replaced package stays as an older version until somebody deletes it, and a deleted one stays for 30
// days. So a package that an attacker wrote can be examined.
resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2025-08-01' = {
  parent: account
  name: 'default'
  properties: {
    isVersioningEnabled: true
    deleteRetentionPolicy: { enabled: true, days: 30 }
    containerDeleteRetentionPolicy: { enabled: true, days: 30 }
  }
  dependsOn: [storage]
}

resource package 'Microsoft.Storage/storageAccounts/blobServices/containers@2025-08-01' = {
  parent: blobs
  name: 'app-package'
  properties: { publicAccess: 'None' }
}

// Storage Blob Data Contributor, which `az functionapp create` also assigns for deployment storage.
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource canUsePackage 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(package.id, identityName, blobDataContributor)
  scope: package
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}

// Reads are not logged: each start of an instance is one.
resource blobLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (diagnostics) {
  name: 'to-workspace'
  scope: blobs
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'StorageWrite', enabled: true }
      { category: 'StorageDelete', enabled: true }
    ]
  }
}

@description('Resource id of the account.')
output id string = storage.outputs.id

@description('URL of the container that holds the package.')
output containerUrl string = '${storage.outputs.blobEndpoint}${package.name}'
