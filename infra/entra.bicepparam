// The broker and its client apps. Replace the client apps with yours.
//
// Deploying writes the whole of each registration. If `python -m infra.entra setup` has made the broker's,
// first put what it got into these parameters: signInAudience, clients or preAuthorizedClientIds, exchanges
// and identityPrincipalIds. Otherwise the audience, the client apps and the permissions are lost.
using 'entra.bicep'

// AzureADMultipleOrgs also lets users of other organisations sign in.
param signInAudience = 'AzureADMyOrg'

param clients = [
  {
    name: 'web-app'
    displayName: 'Calls and chat'
    kind: 'spa' // Or 'publicClient' for a mobile or desktop app, or 'web' for a web app with a server.
    // Administrators of customers' tenants return to the first.
    redirectUris: ['http://localhost:5173']
    preAuthorized: true
  }
]
