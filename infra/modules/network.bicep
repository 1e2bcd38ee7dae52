// A virtual network for the app's outgoing calls and for private endpoints.

@description('Region of the resources.')
param location string

@description('Name of the network; the other names contain it.')
@minLength(2)
@maxLength(60)
param name string

@description('Address space of the network, a /24 or larger.')
param addressPrefix string

@description('Give the app one outgoing address that never changes.')
param fixedEgress bool

@description('Tags of the resources.')
param tags object

resource securityGroup 'Microsoft.Network/networkSecurityGroups@2025-05-01' = {
  name: 'nsg-${name}'
  location: location
  tags: tags
}

// Only for the fixed address: a subnet that is delegated to a service can reach the internet without it,
// as the service arranges. The gateway is in one zone: StandardV2, which spans zones, cannot be attached
// to a subnet like the app's.
// https://learn.microsoft.com/azure/virtual-network/ip-services/default-outbound-access
// https://learn.microsoft.com/azure/nat-gateway/nat-overview
resource outboundAddress 'Microsoft.Network/publicIPAddresses@2025-05-01' = if (fixedEgress) {
  name: 'pip-${name}'
  location: location
  tags: tags
  sku: { name: 'Standard' }
  properties: { publicIPAllocationMethod: 'Static' }
}

resource outbound 'Microsoft.Network/natGateways@2025-05-01' = if (fixedEgress) {
  name: 'ng-${name}'
  location: location
  tags: tags
  sku: { name: 'Standard' }
  properties: {
    publicIpAddresses: [{ id: outboundAddress.id }]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2025-05-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    addressSpace: { addressPrefixes: [addressPrefix] }
    subnets: [
      {
        name: 'app'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 26, 0)
          natGateway: fixedEgress ? { id: outbound.id } : null
          networkSecurityGroup: { id: securityGroup.id }
          delegations: [
            {
              name: 'flex-consumption'
              properties: { serviceName: 'Microsoft.App/environments' }
            }
          ]
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 26, 1)
          defaultOutboundAccess: false
          networkSecurityGroup: { id: securityGroup.id }
        }
      }
    ]
  }

  resource appSubnet 'subnets' existing = {
    name: 'app'
  }

  resource endpointSubnet 'subnets' existing = {
    name: 'endpoints'
  }
}

@description('Resource id of the network.')
output id string = network.id

@description('Resource id of the subnet from which the app calls.')
output appSubnetId string = network::appSubnet.id

@description('Resource id of the subnet of the private endpoints.')
output endpointSubnetId string = network::endpointSubnet.id
