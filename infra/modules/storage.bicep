// One account for the app's package, the host's own state and the mapping tables.

@description('Region of the account.')
param location string

@description('Name of the account, unique in all of Azure.')
@minLength(3)
@maxLength(24)
param name string

@description('Name of the blob container that holds the app\'s package.')
@minLength(3)
@maxLength(63)
param packageContainer string

@description('Names of the tables: the mappings and the ledger of orphans.')
@minLength(2)
@maxLength(2)
param tableNames string[]

@description('Keep three copies in different zones.')
param zoneRedundant bool

@description('Closed to the internet; private endpoints are the only way in.')
param private bool

@description('Forbid to delete the account, until the lock is removed. Its tables cannot be made again.')
param lock bool

@description('Name of the managed identity. Roles are named by it: `what-if` passes over modules with names that are known only later.')
param identityName string

@description('Object id of the managed identity, which roles are given to.')
param principalId string

@description('Resource id of the workspace that gets the logs.')
param workspaceId string

@description('Tags of the resources.')
param tags object

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' = {
  name: name
  location: location
  kind: 'StorageV2'
  sku: { name: zoneRedundant ? 'Standard_ZRS' : 'Standard_LRS' }
  tags: tags
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    networkAcls: { bypass: 'None', defaultAction: private ? 'Deny' : 'Allow' }
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    supportsHttpsTrafficOnly: true
  }

  resource blobs 'blobServices' = {
    name: 'default'
    properties: {
      deleteRetentionPolicy: { enabled: true, days: 7 }
      containerDeleteRetentionPolicy: { enabled: true, days: 7 }
    }

    resource package 'containers' = {
      name: packageContainer
      properties: { publicAccess: 'None' }
    }
  }

  resource tables 'tableServices' = {
    name: 'default'
  }
}

// The broker never creates a table: where one is missing, it answers 503 and makes no identity.
resource mappingTables 'Microsoft.Storage/storageAccounts/tableServices/tables@2025-08-01' = [
  for tableName in tableNames: {
    parent: account::tables
    name: tableName
  }
]

resource deletionLock 'Microsoft.Authorization/locks@2020-05-01' = if (lock) {
  name: 'keep-identity-mappings'
  scope: account
  properties: {
    level: 'CanNotDelete'
    notes: 'The mapping tables say whose each ACS identity is. ACS cannot list them.'
  }
}

// Storage Blob Data Owner: what the Functions host asks for. It makes containers of its own for
// leases, so the role cannot stand on one container.
var blobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'

resource canUseBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, identityName, blobDataOwner)
  scope: account
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataOwner)
  }
}

// Storage Table Data Contributor, on the two tables alone.
var tableDataContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'

resource canUseTables 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (tableName, position) in tableNames: {
    name: guid(account.id, tableName, identityName, tableDataContributor)
    scope: mappingTables[position]
    properties: {
      principalId: principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', tableDataContributor)
    }
  }
]

// Reads are left out: there is one for each token, and the audit lines tell of them already.
resource tableLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: account::tables
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'StorageWrite', enabled: true }
      { category: 'StorageDelete', enabled: true }
    ]
    metrics: [
      { category: 'Transaction', enabled: true }
    ]
  }
}

@description('Resource id of the account.')
output id string = account.id

@description('Blob endpoint, with a slash at the end.')
output blobEndpoint string = account.properties.primaryEndpoints.blob

@description('Table endpoint, with a slash at the end.')
output tableEndpoint string = account.properties.primaryEndpoints.table
