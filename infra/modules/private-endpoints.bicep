// The private ways into the storage account, and the names that lead to them.

@description('Region of the endpoints.')
param location string

@description('Resource id of the network where the names are known.')
param networkId string

@description('Resource id of the subnet of the endpoints.')
param subnetId string

@description('Name of the storage account.')
param storageAccountName string

@description('Resource id of the storage account.')
param storageAccountId string

@description('Tags of the resources.')
param tags object

var services = ['blob', 'table']

resource zones 'Microsoft.Network/privateDnsZones@2024-06-01' = [
  for service in services: {
    name: 'privatelink.${service}.${environment().suffixes.storage}'
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [
  for (service, position) in services: {
    parent: zones[position]
    name: 'link-${service}'
    location: 'global'
    tags: tags
    properties: {
      registrationEnabled: false
      virtualNetwork: { id: networkId }
    }
  }
]

resource endpoints 'Microsoft.Network/privateEndpoints@2025-05-01' = [
  for service in services: {
    name: 'pep-${service}-${storageAccountName}'
    location: location
    tags: tags
    properties: {
      subnet: { id: subnetId }
      privateLinkServiceConnections: [
        {
          name: service
          properties: { privateLinkServiceId: storageAccountId, groupIds: [service] }
        }
      ]
    }
  }
]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2025-05-01' = [
  for (service, position) in services: {
    parent: endpoints[position]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: service
          properties: { privateDnsZoneId: zones[position].id }
        }
      ]
    }
  }
]
