// A new ACS resource.

@description('Name of the ACS resource, unique in all of Azure.')
@minLength(1)
@maxLength(63)
param name string

@description('Where the resource keeps its data. It cannot be changed later.')
param dataLocation string

@description('Lock the resource against deletion, which would delete every identity.')
param lock bool

@description('Tags of the resource.')
param tags object

resource service 'Microsoft.Communication/communicationServices@2026-03-18' = {
  name: name
  location: 'global'
  tags: tags
  properties: {
    dataLocation: dataLocation
    // No access keys, unless somebody who may write the resource turns them on again.
    disableLocalAuth: true
    publicNetworkAccess: 'Enabled'
  }
}

resource deletionLock 'Microsoft.Authorization/locks@2020-05-01' = if (lock) {
  name: 'keep-identities'
  scope: service
  properties: {
    level: 'CanNotDelete'
    notes: 'Deleting the resource deletes every identity and everything that depends on it.'
  }
}
