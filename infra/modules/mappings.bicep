// The mapping table and the ledger of orphans, in their own storage account.

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

@description('Names of the tables: the mappings and the ledger of orphans.')
@minLength(2)
@maxLength(2)
param tableNames string[]

@description('Lock the account against deletion.')
param lock bool

@description('Name of the app\'s identity. Role assignments are named after it, since `what-if` skips modules with names that are unknown before a deployment.')
param identityName string

@description('Object id of the app\'s identity, to which roles are assigned.')
param principalId string

@description('Send the log of each change to the workspace.')
param diagnostics bool

@description('Also send the log of each read.')
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

// The broker never creates a table: if one is missing, it answers 503 and creates no identity.
resource mappingTables 'Microsoft.Storage/storageAccounts/tableServices/tables@2025-08-01' = [
  for tableName in tableNames: {
    parent: account::tables
    name: tableName
    dependsOn: [storage]
  }
]

// The lock prevents the deletion of the account, and so of its group, through Azure Resource Manager. It
// does not protect tables or rows from somebody with a data role: the table service has no locks, no soft
// delete and no versions.
// https://learn.microsoft.com/azure/azure-resource-manager/management/lock-resources
resource deletionLock 'Microsoft.Authorization/locks@2020-05-01' = if (lock) {
  name: 'keep-identity-mappings'
  scope: account
  properties: {
    level: 'CanNotDelete'
    notes: 'Only the mapping tables say whose each ACS identity is. ACS cannot list the identities.'
  }
  dependsOn: [storage]
}

// Storage Table Data Contributor, on the two tables only.
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

// The broker's own reads, one for each token, are in its audit lines already. Only the account's log of
// reads shows who else looked somebody up.
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
