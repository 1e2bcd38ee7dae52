// Puts resources into an Azure Monitor Private Link Scope of this resource group, whoever made the scope.

@description('Name of the scope.')
param scopeName string

@description('Resource ids of what is put there.')
param resourceIds string[]

#disable-next-line BCP081 // There are types for it, but some tools bring those of newer versions only.
resource scope 'Microsoft.Insights/privateLinkScopes@2021-07-01-preview' existing = {
  name: scopeName
}

#disable-next-line BCP081 // As above.
resource members 'Microsoft.Insights/privateLinkScopes/scopedResources@2021-07-01-preview' = [
  for resourceId in resourceIds: {
    parent: scope
    name: last(split(resourceId, '/'))!
    properties: { linkedResourceId: resourceId }
  }
]
