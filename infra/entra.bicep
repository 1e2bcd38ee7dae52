// The registrations of the broker and its client apps in Entra. Deploy them before main.bicep, which
// needs the broker's client id. They are a separate template, since compiling it fetches the Microsoft
// Graph extension, and deploying it takes another role.
//
//   az deployment sub create --name acs-token-broker-entra --location swedencentral \
//     --template-file infra/entra.bicep --parameters infra/entra.bicepparam

targetScope = 'subscription'

import { clientApp, registeredClient } from 'modules/entra-clients.bicep'
import { exchangeOptions } from 'types.bicep'

@description('Name by which later deployments find the registration. It cannot be changed later.')
@minLength(1)
@maxLength(60)
param uniqueName string = 'acs-token-broker'

@description('Name that the consent page shows.')
@minLength(1)
@maxLength(120)
param displayName string = 'ACS token broker'

@description('Who can sign in: users of this tenant, or of every organisation.')
param signInAudience 'AzureADMyOrg' | 'AzureADMultipleOrgs' = 'AzureADMyOrg'

@description('Client apps to register as well.')
param clients clientApp[] = []

@description('Client ids of apps registered elsewhere that need no consent to call the broker.')
param preAuthorizedClientIds string[] = []

@description('Issue tokens for the broker only to users and apps of this tenant that are assigned to it.')
param assignmentRequired bool = false

@description('Whether callers can get tokens as Entra ID users or Teams users, as in main.bicep.')
param exchanges exchangeOptions = { kinds: [] }

@description('Object ids of the managed identities that act as the broker in these exchanges: IDENTITY_PRINCIPAL_ID of main.bicep. They are known only after its first deployment, so deploy this template again then.')
param identityPrincipalIds string[] = []

@description('Object ids of users or service principals that own the registrations, besides the one that first deploys this.')
param ownerIds string[] = []

@description('Reference to this service in a service or asset database, which some tenants require; empty: none.')
param serviceManagementReference string = ''

var scopeName = 'access_as_user'
var scopeId = guid(uniqueName, scopeName)
// The usual api://<client id> would need the client id before the registration exists.
var applicationIdUri = 'api://${tenant().tenantId}/${uniqueName}'

var clientsApp = '2a04943b-b6a7-4f65-8786-2bb6131b59f6' // Azure Communication Services Clients
var teamsApp = '1fd5118e-2576-4263-8130-9503064c837a' // Azure Communication Services for Teams
// In the preview, only those for calls can be granted. No permission has the name .default.
var entraScopes = filter(exchanges.?entraScopes ?? [], scope => scope != '.default')
var entraPermissions = empty(entraScopes) ? ['VoIP'] : entraScopes
var teamsPermissions = concat(
  contains(exchanges.kinds, 'teams') ? ['Teams.ManageCalls', 'Teams.ManageChats'] : [],
  contains(exchanges.kinds, 'teams-extension') ? ['TeamsExtension.ManageCalls'] : []
)

module resources 'modules/entra-resources.bicep' = {
  params: {
    permissions: concat(
      contains(exchanges.kinds, 'entra') ? [{ resourceAppId: clientsApp, names: entraPermissions }] : [],
      empty(teamsPermissions) ? [] : [{ resourceAppId: teamsApp, names: teamsPermissions }]
    )
  }
}

// The broker's registration needs the clients' client ids, and theirs need the broker's. A template may
// not have such a circle, so the clients are written twice, at first without the permission to call the
// broker. uniqueName makes the second time an update.
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

// Graph refuses to pre-authorize clients for a scope that the same request defines
// (https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/1395). So the broker is written
// twice, too. When this is deployed again, the clients are not pre-authorized for a moment.
module brokerScope 'modules/entra-broker.bicep' = {
  params: {
    uniqueName: uniqueName
    displayName: displayName
    signInAudience: signInAudience
    applicationIdUri: applicationIdUri
    scopeName: scopeName
    scopeId: scopeId
    knownClientIds: map(clientIds.outputs.registered, client => client.clientId)
    preAuthorizedClientIds: []
    assignmentRequired: assignmentRequired
    permissions: resources.outputs.known
    identityPrincipalIds: identityPrincipalIds
    ownerIds: ownerIds
    serviceManagementReference: serviceManagementReference
  }
}

module broker 'modules/entra-broker.bicep' = {
  params: {
    uniqueName: uniqueName
    displayName: displayName
    signInAudience: signInAudience
    applicationIdUri: applicationIdUri
    scopeName: scopeName
    scopeId: brokerScope.outputs.scopeId
    knownClientIds: map(clientIds.outputs.registered, client => client.clientId)
    preAuthorizedClientIds: concat(
      preAuthorizedClientIds,
      map(filter(clientIds.outputs.registered, client => client.preAuthorized), client => client.clientId)
    )
    assignmentRequired: assignmentRequired
    permissions: resources.outputs.known
    identityPrincipalIds: identityPrincipalIds
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

@description('The parameter entraClientId of main.bicep.')
output ENTRA_CLIENT_ID string = broker.outputs.clientId

@description('The parameter entraApplicationIdUri of main.bicep.')
output ENTRA_APPLICATION_ID_URI string = applicationIdUri

@description('The client apps: their client ids, and the pages on which an administrator of a customer\'s tenant consents to each together with the broker.')
output CLIENT_APPS registeredClient[] = clientPermissions.outputs.registered
