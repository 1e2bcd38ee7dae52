// A storage account without keys and anonymous access. The module that uses it defines what it holds, and
// who has access.

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

@description('Tags of the account.')
param tags object

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' = {
  name: name
  location: location
  kind: 'StorageV2'
  sku: { name: sku }
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
}

@description('Resource id of the account.')
output id string = account.id

@description('Blob endpoint, with a slash at the end.')
output blobEndpoint string = account.properties.primaryEndpoints.blob

@description('Table endpoint, with a slash at the end.')
output tableEndpoint string = account.properties.primaryEndpoints.table
