// The identity that opens every resource. The roles stand next to what they open.

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

@description('Client id: what code names the identity by.')
output clientId string = identity.properties.clientId

@description('Object id of the service principal: what roles are given to.')
output principalId string = identity.properties.principalId
