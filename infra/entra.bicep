// The registrations of the broker and of its client apps in Entra. They come before main.bicep, which
// needs the broker's client id. In files of their own, since compiling them fetches the Microsoft
// Graph extension, and deploying them takes another role.
//
//   az deployment sub create --name acs-token-broker-entra --location swedencentral \
//     --template-file infra/entra.bicep --parameters infra/entra.bicepparam

targetScope = 'subscription'

import { clientApp, registeredClient } from 'modules/entra-clients.bicep'

@description('Name that finds the registration again on the next deployment. It cannot be changed later.')
@minLength(1)
@maxLength(60)
param uniqueName string = 'acs-token-broker'

@description('Name that people see when they are asked for consent.')
@minLength(1)
@maxLength(120)
param displayName string = 'ACS token broker'

@description('Users of this tenant only, or of every organisation.')
param signInAudience 'AzureADMyOrg' | 'AzureADMultipleOrgs' = 'AzureADMyOrg'

@description('Client apps to register as well.')
param clients clientApp[] = []

@description('Client ids of apps registered elsewhere that need no consent to call the broker.')
param preAuthorizedClientIds string[] = []

@description('Give tokens for the broker only to users and apps of this tenant that are assigned to it.')
param assignmentRequired bool = false

@description('Object ids of users or service principals that own the registrations, besides whoever deploys this first.')
param ownerIds string[] = []

@description('Reference to this service in a service or asset database, which some tenants ask for; empty: none.')
param serviceManagementReference string = ''

var scopeName = 'access_as_user'
var scopeId = guid(uniqueName, scopeName)
// The usual api://<client id> would need the client id before there is one.
var applicationIdUri = 'api://${tenant().tenantId}/${uniqueName}'

// The broker lists the client ids of its clients, and the clients ask for a permission of the broker's
// client id: a circle, which no template may have. So the clients are written twice, at first without
// that permission. uniqueName makes the second time an update.
module clientIds 'modules/entra-clients.bicep' = {
  params: {
    clients: clients
    uniqueName: uniqueName
    signInAudience: signInAudience
    ownerIds: ownerIds
    serviceManagementReference: serviceManagementReference
    scopeId: scopeId
  }
}

module broker 'modules/entra-broker.bicep' = {
  params: {
    uniqueName: uniqueName
    displayName: displayName
    signInAudience: signInAudience
    applicationIdUri: applicationIdUri
    scopeName: scopeName
    scopeId: scopeId
    knownClientIds: map(clientIds.outputs.registered, client => client.clientId)
    preAuthorizedClientIds: concat(
      preAuthorizedClientIds,
      map(filter(clientIds.outputs.registered, client => client.preAuthorized), client => client.clientId)
    )
    assignmentRequired: assignmentRequired
    ownerIds: ownerIds
    serviceManagementReference: serviceManagementReference
  }
}

module clientPermissions 'modules/entra-clients.bicep' = {
  params: {
    clients: clients
    uniqueName: uniqueName
    signInAudience: signInAudience
    ownerIds: ownerIds
    serviceManagementReference: serviceManagementReference
    brokerClientId: broker.outputs.clientId
    scopeId: scopeId
  }
}

@description('For the parameter entraClientId of main.bicep.')
output ENTRA_CLIENT_ID string = broker.outputs.clientId

@description('For the parameter entraApplicationIdUri of main.bicep.')
output ENTRA_APPLICATION_ID_URI string = applicationIdUri

@description('The client apps: their client ids, and where an administrator of a customer\'s tenant consents to each together with the broker.')
output CLIENT_APPS registeredClient[] = clientPermissions.outputs.registered
