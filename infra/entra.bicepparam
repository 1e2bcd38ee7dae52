// The broker and its client apps. Replace the client apps with yours.
using 'entra.bicep'

// AzureADMultipleOrgs serves the users of other organisations as well.
param signInAudience = 'AzureADMyOrg'

param clients = [
  {
    name: 'web-app'
    displayName: 'Calls and chat'
    kind: 'spa' // Or 'publicClient', a mobile or desktop app, or 'web', a web app with a server.
    // The first is where administrators of customers' tenants return to.
    redirectUris: ['http://localhost:5173']
    preAuthorized: true
  }
]
