// The registrations of the client apps that call the broker.

targetScope = 'subscription'

extension microsoftGraphV1

@export()
@description('An app that signs users in and calls the broker for them.')
@sealed()
type clientApp = {
  @description('Name by which later deployments find the registration. It cannot be changed later.')
  @minLength(1)
  @maxLength(60)
  name: string

  @description('Name that the consent page shows.')
  @minLength(1)
  @maxLength(120)
  displayName: string

  @description('Single-page app; mobile or desktop app; or web app with a server, which needs a credential from you.')
  kind: 'spa' | 'publicClient' | 'web'

  @description('Addresses to which Entra sends users back. Administrators return to the first after they consent.')
  @minLength(1)
  redirectUris: string[]

  @description('This app may call the broker without asking for consent.')
  preAuthorized: bool
}

@export()
@description('A client app as it is registered.')
@sealed()
type registeredClient = {
  @description('Name of the client app.')
  name: string

  @description('Client id.')
  clientId: string

  @description('This app may call the broker without asking for consent.')
  preAuthorized: bool

  @description('Page on which an administrator of a customer\'s tenant consents; {tenant} is that tenant\'s id.')
  adminConsentUrl: string
}

@description('The client apps.')
param clients clientApp[]

@description('Name of the broker\'s registration; the names of the clients\' registrations begin with it.')
param uniqueName string

@description('Who can sign in: users of this tenant, or of every organisation.')
param signInAudience string

@description('Object ids of further owners of the registrations.')
param ownerIds string[]

@description('Reference to this service in a service or asset database; empty: none.')
param serviceManagementReference string

@description('Client id of the broker; empty if it has no registration yet.')
param brokerClientId string = ''

@description('Id of the broker\'s scope that the clients ask for.')
param scopeId string

// For signing in: the delegated permission User.Read of Microsoft Graph, which the portal gives every app.
// https://learn.microsoft.com/graph/permissions-reference#userread
@export()
var signingIn = {
  resourceAppId: '00000003-0000-0000-c000-000000000000'
  resourceAccess: [{ id: 'e1fe6dd8-ba31-4d61-89e7-88639da4683d', type: 'Scope' }]
}
var callingTheBroker = {
  resourceAppId: brokerClientId
  resourceAccess: [{ id: scopeId, type: 'Scope' }]
}

resource applications 'Microsoft.Graph/applications@v1.0' = [
  for client in clients: {
    uniqueName: '${uniqueName}-${client.name}'
    displayName: client.displayName
    signInAudience: signInAudience
    serviceManagementReference: empty(serviceManagementReference) ? null : serviceManagementReference
    owners: { relationships: ownerIds }
    // All three are set, so that a client's kind can be changed.
    spa: { redirectUris: client.kind == 'spa' ? client.redirectUris : [] }
    publicClient: { redirectUris: client.kind == 'publicClient' ? client.redirectUris : [] }
    web: { redirectUris: client.kind == 'web' ? client.redirectUris : [] }
    requiredResourceAccess: empty(brokerClientId) ? [signingIn] : [signingIn, callingTheBroker]
    servicePrincipalLockConfiguration: { isEnabled: true, allProperties: true }
  }
]

resource principals 'Microsoft.Graph/servicePrincipals@v1.0' = [
  for (client, position) in clients: {
    appId: applications[position].appId
  }
]

@description('The client apps with their client ids.')
output registered registeredClient[] = [
  for (client, position) in clients: {
    name: client.name
    clientId: applications[position].appId
    preAuthorized: client.preAuthorized
    adminConsentUrl: '${environment().authentication.loginEndpoint}{tenant}/adminconsent?client_id=${applications[position].appId}&redirect_uri=${uriComponent(client.redirectUris[0])}'
  }
]
