// The backups of the mapping tables: one container, written by the app's timer and read by nobody but
// whoever restores.

import { backupOptions } from '../types.bicep'

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

@description('How long backups are kept.')
param backups backupOptions

@description('Forbid deleting the account, until the lock is removed.')
param lock bool

@description('Name of the app\'s identity. Roles are named by it: `what-if` skips modules with names that are known only later.')
param identityName string

@description('Object id of the app\'s identity, which gets the role.')
param principalId string

@description('Send the log of each request to the workspace.')
param diagnostics bool

@description('Resource id of the workspace that gets the log.')
param workspaceId string

@description('Tags of the account.')
param tags object

var softDeleteDays = 7
var immutableDays = backups.immutableDays <= backups.keepDays
  ? backups.immutableDays
  : fail('backups: immutableDays cannot be more than keepDays.')

module storage 'storage.bicep' = {
  params: { location: location, name: name, sku: sku, private: private, tags: tags }
}

resource account 'Microsoft.Storage/storageAccounts@2025-08-01' existing = {
  name: name
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2025-08-01' = {
  parent: account
  name: 'default'
  properties: {
    isVersioningEnabled: true
    deleteRetentionPolicy: { enabled: true, days: softDeleteDays }
    containerDeleteRetentionPolicy: { enabled: true, days: softDeleteDays }
  }
  dependsOn: [storage]
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2025-08-01' = {
  parent: blobs
  name: 'mappings-backup'
  properties: { publicAccess: 'None' }
}

// While it lasts, nobody can change or delete a backup. An owner can shorten or delete the policy itself,
// until somebody locks it (docs/operations.md says how). A locked policy can only be extended, and Azure
// refuses to write it again, so it is left out here.
// https://learn.microsoft.com/azure/storage/blobs/immutable-storage-overview#locked-versus-unlocked-policies
resource immutability 'Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies@2025-08-01' = if (!backups.immutabilityLocked) {
  parent: container
  name: 'default'
  properties: {
    immutabilityPeriodSinceCreationInDays: immutableDays
    allowProtectedAppendWrites: false
  }
}

// With versions on, a blob that is deleted becomes a version, and a version that is deleted is kept for
// the days of soft deletion. So a backup is gone for good some days after it is deleted.
resource expiry 'Microsoft.Storage/storageAccounts/managementPolicies@2025-08-01' = {
  parent: account
  name: 'default'
  properties: {
    policy: {
      rules: [
        {
          name: 'delete-old-backups'
          enabled: true
          type: 'Lifecycle'
          definition: {
            filters: { blobTypes: ['blockBlob'], prefixMatch: ['${container.name}/'] }
            actions: {
              baseBlob: { delete: { daysAfterCreationGreaterThan: backups.keepDays } }
              version: { delete: { daysAfterCreationGreaterThan: backups.keepDays } }
            }
          }
        }
      ]
    }
  }
}

resource deletionLock 'Microsoft.Authorization/locks@2020-05-01' = if (lock) {
  name: 'keep-backups'
  scope: account
  properties: {
    level: 'CanNotDelete'
    notes: 'The backups of the mapping tables. ACS cannot list identities.'
  }
  dependsOn: [storage]
}

// Storage Blob Data Contributor, on the container. No built-in role may write without also being allowed
// to delete. What this one deletes, once the policy above no longer forbids it, stays as a version, and it
// may not delete versions.
// https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource canWriteBackups 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(container.id, identityName, blobDataContributor)
  scope: container
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}

// Reads as well: they are rare, and each is of everybody's identities.
resource blobLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (diagnostics) {
  name: 'to-workspace'
  scope: blobs
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'StorageRead', enabled: true }
      { category: 'StorageWrite', enabled: true }
      { category: 'StorageDelete', enabled: true }
    ]
  }
}

@description('Resource id of the account.')
output id string = storage.outputs.id

@description('Blob endpoint, with a slash at the end.')
output blobEndpoint string = storage.outputs.blobEndpoint

@description('Name of the container.')
output containerName string = container.name
