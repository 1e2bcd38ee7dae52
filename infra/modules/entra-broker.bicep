// The registration of the broker. It is a separate module, so that its clients' ids are plain values
// here: a function over another registration's properties can fail a deployment with an unknown error
// (https://github.com/Azure/bicep/issues/18046).

targetScope = 'subscription'

extension microsoftGraphV1

import { signingIn } from 'entra-clients.bicep'
import { knownPermissions } from 'entra-resources.bicep'

@description('Client id of an app.')
@minLength(36)
@maxLength(36)
type clientId = string

@description('Name by which later deployments find the registration. It cannot be changed later.')
param uniqueName string

@description('Name that the consent page shows.')
param displayName string

@description('Who can sign in: users of this tenant, or of every organisation.')
param signInAudience string

@description('Application ID URI.')
param applicationIdUri string

@description('Delegated scope that access tokens must have.')
param scopeName string

@description('Id of that scope.')
param scopeId string

@description('Client ids of the apps to which people consent together with the broker. They must be registered in the same tenant.')
param knownClientIds clientId[]

@description('Client ids of the apps that need no consent to call the broker.')
param preAuthorizedClientIds string[]

@description('Issue tokens for the broker only to users and apps that are assigned to it.')
param assignmentRequired bool

@description('Permissions of Microsoft\'s apps that the broker asks for.')
param permissions knownPermissions[]

@description('Object ids of the managed identities that act as the broker, without a secret.')
param identityPrincipalIds string[]

@description('Object ids of further owners of the registration.')
param ownerIds string[]

@description('Reference to this service in a service or asset database; empty: none.')
param serviceManagementReference string

// A scope or a role can be removed only after a deployment has set its isEnabled to false
// (https://github.com/microsoftgraph/msgraph-bicep-types/issues/197).
resource broker 'Microsoft.Graph/applications@v1.0' = {
  uniqueName: uniqueName
  displayName: displayName
  signInAudience: signInAudience
  serviceManagementReference: empty(serviceManagementReference) ? null : serviceManagementReference
  owners: { relationships: ownerIds }
  identifierUris: [applicationIdUri]
  api: {
    requestedAccessTokenVersion: 2
    oauth2PermissionScopes: [
      {
        id: scopeId
        value: scopeName
        type: 'User'
        isEnabled: true
        adminConsentDisplayName: 'Call and chat as the signed-in user'
        adminConsentDescription: 'Lets the app get Azure Communication Services tokens for the signed-in user.'
        userConsentDisplayName: 'Call and chat as you'
        userConsentDescription: 'Lets the app get Azure Communication Services tokens for you.'
      }
    ]
    knownClientApplications: knownClientIds
    preAuthorizedApplications: map(preAuthorizedClientIds, id => {
      appId: id
      delegatedPermissionIds: [scopeId]
    })
  }
  appRoles: [
    // An app that declares a role has no default role, so people need one that grants nothing more.
    {
      id: guid(uniqueName, 'Tokens.Get')
      value: 'Tokens.Get'
      displayName: 'User'
      description: 'Gets Azure Communication Services tokens for calls and chat.'
      allowedMemberTypes: ['User']
      isEnabled: true
    }
    {
      id: guid(uniqueName, 'Mappings.Admin')
      value: 'Mappings.Admin'
      displayName: 'Administrator of mappings'
      description: 'Reads, changes and erases the Azure Communication Services identities of all users.'
      allowedMemberTypes: ['User', 'Application']
      isEnabled: true
    }
  ]
  // The consent page for administrators needs a permission to ask for, and an address to return to. A
  // code sent to that address is useless: only the managed identities can redeem it, which do not.
  // https://learn.microsoft.com/entra/identity-platform/howto-convert-app-to-be-multi-tenant
  requiredResourceAccess: concat(
    [signingIn],
    map(permissions, permission => {
      resourceAppId: permission.resourceAppId
      resourceAccess: map(
        filter(permission.scopes, scope => contains(permission.names, scope.value)),
        scope => { id: scope.id, type: 'Scope' }
      )
    })
  )
  web: { redirectUris: ['https://entra.microsoft.com/'] }
  // idtyp tells apps' tokens from users', xms_cc which apps can handle claims challenges.
  optionalClaims: {
    accessToken: [{ name: 'idtyp' }, { name: 'xms_cc' }]
  }
  servicePrincipalLockConfiguration: { isEnabled: true, allProperties: true }
}

resource principal 'Microsoft.Graph/servicePrincipals@v1.0' = {
  appId: broker.appId
  appRoleAssignmentRequired: assignmentRequired
}

// https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
resource federations 'Microsoft.Graph/applications/federatedIdentityCredentials@v1.0' = [
  for principalId in identityPrincipalIds: {
    name: '${broker.uniqueName}/managed-identity-${principalId}'
    issuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
    subject: principalId
    audiences: ['api://AzureADTokenExchange']
  }
]

@description('Client id of the broker.')
output clientId string = broker.appId

@description('Id of the scope, which now exists.')
output scopeId string = broker.api.oauth2PermissionScopes[0].id
