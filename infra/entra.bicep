// The registration of the broker in Entra, and of a web app that calls it. It comes before
// main.bicep, which needs its client id. In a file of its own, since compiling it fetches the
// Microsoft Graph extension, and deploying it takes another role.
//
//   az deployment sub create --name entra --location westeurope --template-file infra/entra.bicep

targetScope = 'subscription'

extension microsoftGraphV1

@description('Name that finds the registration again on the next deployment. It cannot be changed later.')
@minLength(1)
@maxLength(100)
param uniqueName string = 'acs-token-broker'

@description('Name that people see when they are asked for consent.')
@minLength(1)
@maxLength(120)
param displayName string = 'ACS token broker'

@description('Users of this tenant only, or of every organisation.')
param signInAudience 'AzureADMyOrg' | 'AzureADMultipleOrgs' = 'AzureADMyOrg'

@description('Client ids of apps that need no consent to call the broker.')
param preAuthorizedClientIds string[] = []

@description('Redirect URIs of a single-page app to register as well; empty: none is registered.')
param webAppRedirectUris string[] = []

var scopeName = 'access_as_user'
var scopeId = guid(uniqueName, scopeName)
var registersWebApp = !empty(webAppRedirectUris)
var clientIds = registersWebApp ? concat(preAuthorizedClientIds, [webApp!.appId]) : preAuthorizedClientIds
// The usual api://<client id> would need the client id before there is one.
var applicationIdUri = 'api://${tenant().tenantId}/${uniqueName}'

resource webApp 'Microsoft.Graph/applications@v1.0' = if (registersWebApp) {
  uniqueName: '${uniqueName}-web-app'
  displayName: '${displayName}: web app'
  signInAudience: signInAudience
  spa: { redirectUris: webAppRedirectUris }
}

resource webAppPrincipal 'Microsoft.Graph/servicePrincipals@v1.0' = if (registersWebApp) {
  appId: webApp!.appId
}

resource broker 'Microsoft.Graph/applications@v1.0' = {
  uniqueName: uniqueName
  displayName: displayName
  signInAudience: signInAudience
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
    preAuthorizedApplications: map(clientIds, clientId => {
      appId: clientId
      delegatedPermissionIds: [scopeId]
    })
  }
  // Tells tokens of apps from tokens of users.
  optionalClaims: {
    accessToken: [{ name: 'idtyp' }]
  }
  servicePrincipalLockConfiguration: { isEnabled: true, allProperties: true }
}

resource brokerPrincipal 'Microsoft.Graph/servicePrincipals@v1.0' = {
  appId: broker.appId
}

@description('For the parameter entraClientId of main.bicep.')
output ENTRA_CLIENT_ID string = broker.appId

@description('For the parameter entraApplicationIdUri of main.bicep.')
output ENTRA_APPLICATION_ID_URI string = applicationIdUri

@description('Client id of the web app; empty where none is registered.')
output WEB_APP_CLIENT_ID string = registersWebApp ? webApp!.appId : ''
