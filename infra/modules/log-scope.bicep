// A new Azure Monitor Private Link Scope: what is in it takes logs from the network of its endpoint.

@description('Name of the scope.')
@minLength(1)
@maxLength(255)
param name string

@description('Tags of the scope.')
param tags object

// Queries stay open: alerts, the workbook and operators come from outside the network, and sign in.
#disable-next-line BCP081 // There are types for it, but some tools bring those of newer versions only.
resource scope 'Microsoft.Insights/privateLinkScopes@2021-07-01-preview' = {
  name: name
  location: 'global'
  tags: tags
  properties: {
    accessModeSettings: { ingestionAccessMode: 'PrivateOnly', queryAccessMode: 'Open' }
  }
}

@description('Resource id of the scope.')
output id string = scope.id
