// Whose each ACS identity is: the mapping table and the ledger of orphans, in an account of their own.

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

@description('Names of the tables: the mappings and the ledger of orphans.')
@minLength(2)
@maxLength(2)
param tableNames string[]

@description('Forbid to delete the account, until the lock is removed.')
param lock bool

@description('Name of the app\'s identity. Roles are named by it: `what-if` passes over modules with names that are known only later.')
param identityName string

@description('Object id of the app\'s identity, which roles are given to.')
param principalId string

@description('Send the log of each change to the workspace.')
param diagnostics bool

@description('Send the log of each read as well.')
param logReads bool

@description('Resource id of the workspace that gets the logs.')
param workspaceId string

@description('Tags of the account.')
param tags object

module storage 'storage.bicep' = {
  params: { location: location, name: name, sku: sku, private: private, tags: tags }
}

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' existing = {
  name: name

  resource tables 'tableServices' existing = {
    name: 'default'
  }
}

// The broker never creates a table: where one is missing, it answers 503 and makes no identity.
resource mappingTables 'Microsoft.Storage/storageAccounts/tableServices/tables@2025-08-01' = [
  for tableName in tableNames: {
    parent: account::tables
    name: tableName
    dependsOn: [storage]
  }
]

// The lock keeps the account, and its group with it, from being deleted through Azure Resource Manager.
// It does not keep rows or tables: the table service knows no locks, and has neither soft delete nor
// versions to bring back what somebody with a data role deleted.
// https://learn.microsoft.com/azure/azure-resource-manager/management/lock-resources
resource deletionLock 'Microsoft.Authorization/locks@2020-05-01' = if (lock) {
  name: 'keep-identity-mappings'
  scope: account
  properties: {
    level: 'CanNotDelete'
    notes: 'The mapping tables say whose each ACS identity is. ACS cannot list them.'
  }
  dependsOn: [storage]
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

// The broker's reads are in its audit lines already, one for each token. Who else looked somebody up,
// only the account can tell.
resource tableLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (diagnostics) {
  name: 'to-workspace'
  scope: account::tables
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'StorageRead', enabled: logReads }
      { category: 'StorageWrite', enabled: true }
      { category: 'StorageDelete', enabled: true }
    ]
    metrics: [
      { category: 'Transaction', enabled: true }
    ]
  }
  dependsOn: [storage]
}

@description('Resource id of the account.')
output id string = storage.outputs.id

@description('Table endpoint, with a slash at the end.')
output tableEndpoint string = storage.outputs.tableEndpoint
