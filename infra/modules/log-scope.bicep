// A new Azure Monitor Private Link Scope: its members take logs from the network of its endpoint.

@description('Name of the scope.')
@minLength(1)
@maxLength(255)
param name string

@description('Tags of the scope.')
param tags object

// Queries stay open: alerts, the workbook and operators sign in from outside the network.
#disable-next-line BCP081 // There are types for it, but some tools have only those of newer versions.
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
