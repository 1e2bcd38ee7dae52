// The broker and its client apps. Replace the client apps with yours.
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
