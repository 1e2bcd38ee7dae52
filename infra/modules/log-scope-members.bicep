// Puts resources into an Azure Monitor Private Link Scope of this resource group, new or not.

@description('Name of the scope.')
param scopeName string

@description('Ids of the resources.')
param resourceIds string[]

#disable-next-line BCP081 // There are types for it, but some tools have only those of newer versions.
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
