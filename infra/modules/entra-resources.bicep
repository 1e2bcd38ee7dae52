// The service principals of Microsoft's apps whose permissions the broker asks for. Their ids are
// published nowhere, so they are looked up by name.

targetScope = 'subscription'

extension microsoftGraphV1

@export()
@description('Delegated permissions of one of Microsoft\'s apps, by name.')
@sealed()
type requestedPermissions = {
  @description('Client id of the app.')
  resourceAppId: string

  @description('Names of its permissions.')
  names: string[]
}

@export()
@description('Delegated permissions of one of Microsoft\'s apps, and what there is.')
@sealed()
type knownPermissions = {
  @description('Client id of the app.')
  resourceAppId: string

  @description('Names of the permissions that are asked for.')
  names: string[]

  @description('All delegated permissions of the app.')
  scopes: array
}

@description('What the broker asks for.')
param permissions requestedPermissions[]

resource principals 'Microsoft.Graph/servicePrincipals@v1.0' = [
  for permission in permissions: {
    appId: permission.resourceAppId
  }
]

@description('What the broker asks for, with all permissions that the apps have.')
output known knownPermissions[] = [
  for (permission, position) in permissions: {
    resourceAppId: permission.resourceAppId
    names: permission.names
    scopes: principals[position].oauth2PermissionScopes
  }
]
