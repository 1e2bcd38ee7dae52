// Private endpoints, and the DNS names that lead to them.

import { dnsZoneIds, privateEndpoint } from '../types.bicep'

@description('Region of the endpoints.')
param location string

@description('Resource id of the network in which the names resolve.')
param networkId string

@description('Resource id of the subnet of the endpoints.')
param subnetId string

@description('The endpoints, and the resources that they lead to.')
param endpoints privateEndpoint[]

@description('Private DNS zones to use instead of new ones.')
param zoneIds dnsZoneIds?

@description('Tags of the resources.')
param tags object

var zoneNames = {
  agentsvc: 'privatelink.agentsvc.azure-automation.net'
  blob: 'privatelink.blob.${environment().suffixes.storage}'
  monitor: 'privatelink.monitor.azure.com'
  ods: 'privatelink.ods.opinsights.azure.com'
  oms: 'privatelink.oms.opinsights.azure.com'
  sites: 'privatelink.azurewebsites.net'
  table: 'privatelink.table.${environment().suffixes.storage}'
}
var makesZones = zoneIds == null
var newZones = makesZones ? union(flatten(map(endpoints, endpoint => endpoint.zones)), []) : []
var usedZones = [
  for endpoint in endpoints: filter(endpoint.zones, zone => makesZones || contains(zoneIds ?? {}, zone))
]

resource zones 'Microsoft.Network/privateDnsZones@2024-06-01' = [
  for zone in newZones: {
    name: zoneNames[zone]
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [
  for (zone, position) in newZones: {
    parent: zones[position]
    name: 'link-${zone}'
    location: 'global'
    tags: tags
    properties: {
      registrationEnabled: false
      virtualNetwork: { id: networkId }
    }
  }
]

resource privateEndpoints 'Microsoft.Network/privateEndpoints@2025-05-01' = [
  for endpoint in endpoints: {
    name: 'pep-${endpoint.groupId}-${endpoint.name}'
    location: location
    tags: tags
    properties: {
      subnet: { id: subnetId }
      privateLinkServiceConnections: [
        {
          name: endpoint.groupId
          properties: { privateLinkServiceId: endpoint.resourceId, groupIds: [endpoint.groupId] }
        }
      ]
    }
  }
]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2025-05-01' = [
  for (endpoint, position) in endpoints: if (!empty(usedZones[position])) {
    parent: privateEndpoints[position]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        for zone in usedZones[position]: {
          name: zone
          properties: {
            privateDnsZoneId: makesZones
              ? resourceId('Microsoft.Network/privateDnsZones', zoneNames[zone])
              : zoneIds![zone]
          }
        }
      ]
    }
    dependsOn: [zones]
  }
]
