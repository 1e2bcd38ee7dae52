// A managed identity. Its roles are assigned in the modules of the resources.

@description('Region of the identity.')
param location string

@description('Name of the identity.')
@minLength(3)
@maxLength(128)
param name string

@description('Tags of the resource.')
param tags object

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: name
  location: location
  tags: tags
}

@description('Resource id of the identity.')
output id string = identity.id

@description('Client id, by which code refers to the identity.')
output clientId string = identity.properties.clientId

@description('Object id of the service principal, to which roles are assigned.')
output principalId string = identity.properties.principalId
