// The whole of the service, but for its registration in Entra (entra.bicep), which comes first.
//
//   az deployment sub create --name "acs-token-broker-$AZURE_ENV_NAME" --location "$AZURE_LOCATION" \
//     --template-file infra/main.bicep --parameters infra/main.bicepparam

targetScope = 'subscription'

import { accessOptions, alertThresholds, budgetOptions, dnsZoneIds, pruneOptions, scaleOptions, subnetIds, tokenOptions } from 'types.bicep'

@description('Name of this environment, such as dev or prod: lower-case letters, digits and hyphens. All names of resources are made from it.')
@minLength(2)
@maxLength(20)
param environmentName string

@description('Region of everything but the ACS resource, which is global.')
@metadata({ azd: { type: 'location' } })
param location string

@description('Tags of every resource.')
param tags { *: string } = {}

@description('Client id of the broker\'s app registration.')
@minLength(36)
@maxLength(36)
param entraClientId string

@description('Ids of the tenants whose users are served, * alone for every organisation; empty: the tenant of the subscription.')
param entraTenantIds string[] = []

@description('Application ID URI of the registration.')
@minLength(1)
param entraApplicationIdUri string

@description('Delegated scope that callers must hold.')
@minLength(1)
param entraRequiredScope string = 'access_as_user'

@description('Client ids of the apps that may call; empty: all that hold the scope.')
param entraAllowedClientIds string[] = []

@description('Resource id of an ACS resource to use in place of a new one.')
param communicationServiceId string = ''

@description('Where a new ACS resource keeps its data. It cannot be changed later.')
@allowed([
  'Africa'
  'Asia Pacific'
  'Australia'
  'Brazil'
  'Canada'
  'Europe'
  'France'
  'Germany'
  'India'
  'Japan'
  'Korea'
  'Norway'
  'Switzerland'
  'UAE'
  'UK'
  'United States'
])
param dataLocation string = 'Europe'

@description('What the ACS tokens allow, and for how long.')
param tokens tokenOptions = { scopes: ['voip'], lifetimeMinutes: 60, maxLifetimeMinutes: 1440 }

@description('When identities that nobody uses are removed, and the brakes on that.')
param prune pruneOptions = {
  schedule: '0 0 3 * * *'
  idleDays: 90
  dryRun: false
  maxPercent: 20
  maxDeletes: 5000
}

@description('Name of the table of mappings; that of the ledger of orphans is made from it.')
@minLength(3)
@maxLength(55)
param mappingsTable string = 'IdentityMappings'

@description('Origins of web apps that call the broker from a browser, such as https://app.contoso.com.')
param allowedOrigins string[] = []

@description('How the app scales.')
param scale scaleOptions = {
  memoryMB: 512
  maximumInstances: 40
  alwaysReadyInstances: 0
  requestsPerInstance: 32
}

@description('Spread the app over zones. Its storage has to be there first: see storageSku.')
param zoneRedundant bool = false

@description('How many copies of the storage there are, and where. Zone redundancy wants ZRS or GZRS. Azure converts an account that there is on request (`az storage account migration start`), not by a deployment: convert the accounts first, then change this.')
param storageSku 'Standard_LRS' | 'Standard_ZRS' | 'Standard_GRS' | 'Standard_GZRS' = 'Standard_LRS'

@description('Close the storage accounts to the internet, and let the app reach them through a network of its own.')
param privateNetwork bool = false

@description('Address space of that network, a /24 or larger.')
param networkPrefix string = '10.80.0.0/24'

@description('Let the app call from one address that never changes, for firewalls elsewhere. It costs a NAT gateway, which is in one zone. Implies privateNetwork.')
param fixedEgress bool = false

@description('Subnets to use in place of a network of our own, with the routes and firewalls that they have. Implies privateNetwork.')
param existingSubnets subnetIds?

@description('Private DNS zones to use in place of new ones; {}: whoever runs the network, or Azure Policy, sees to the names. A network takes one zone of a name, so a second environment in it needs this.')
param privateDnsZones dnsZoneIds?

@description('Close the app itself to the internet: callers and deployments come through a private endpoint. Implies privateNetwork.')
param privateApp bool = false

@description('Who may reach the app over the internet; null: everybody.')
param access accessOptions?

@description('Send the app\'s telemetry through the network, to an Azure Monitor Private Link Scope. Implies privateNetwork.')
param privateLogs bool = false

@description('Resource id of an Azure Monitor Private Link Scope to use in place of a new one. Implies privateLogs.')
param existingLogScopeId string = ''

@description('Forbid to delete a new ACS resource, until the lock is removed: every identity would go with it.')
param lockCommunication bool = true

@description('Forbid to delete the storage account with the mapping tables, until the lock is removed.')
param lockData bool = false

@description('Make the diagnostic settings that send logs of the resources to the workspace; false where Azure Policy makes them, or another broker does for the same ACS resource and workspace. Azure takes each log for a workspace once.')
param diagnostics bool = true

@description('Send the Functions host\'s log to the workspace directly as well: all that Application Insights has, once more, for an app that fails before it can write there.')
param logFunctionApp bool = false

@description('Log each read of the mapping tables, too: one more row for each token.')
param logTableReads bool = false

@description('Resource id of a Log Analytics workspace to use in place of a new one.')
param logAnalyticsWorkspaceId string = ''

@description('Most that a new workspace takes in a day, in GB: ten times what is expected, 1 for each 30,000 tokens a day.')
@minValue(1)
param logDailyQuotaGb int = 1

@description('Days that a new workspace keeps the logs.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Mail addresses that get alerts and notices of the budget.')
param alertEmails string[] = []

@description('Where Azure asks for the app\'s health from every five minutes; empty: it does not, as where the app is closed to the internet. https://learn.microsoft.com/azure/azure-monitor/app/availability#location-population-tags')
param availabilityTestLocations string[] = [
  'emea-nl-ams-azr' // West Europe
  'emea-gb-db3-azr' // North Europe
  'emea-ru-msa-edge' // UK South
  'us-va-ash-azr' // East US
  'apac-sg-sin-azr' // Southeast Asia
]

@description('When alerts fire.')
param thresholds alertThresholds = { serverErrorPercent: 5, slowRequestMs: 2500 }

@description('What the resource group may cost before mail is sent to alertEmails; null, or nobody to tell: no budget.')
param monthlyBudget budgetOptions?

var nameCharacters = 'abcdefghijklmnopqrstuvwxyz0123456789-'
var strange = filter(range(0, length(environmentName)), at => !contains(nameCharacters, substring(environmentName, at, 1)))
var nameProblem = !empty(strange)
  ? 'environmentName takes lower-case letters, digits and hyphens only.'
  : environmentName == 'entra' ? 'environmentName cannot be entra: the deployment of entra.bicep has that name.' : ''
var token = empty(nameProblem)
  ? toLower(uniqueString(subscription().id, environmentName, toLower(replace(location, ' ', ''))))
  : fail(nameProblem)
var allTags = union(tags, { 'azd-env-name': environmentName })
var appName = 'func-${environmentName}-${token}'
var identityName = 'id-${environmentName}-${token}'
var componentName = 'appi-${environmentName}-${token}'
var sku = zoneRedundant && !endsWith(storageSku, 'ZRS')
  ? fail('zoneRedundant needs the storageSku Standard_ZRS or Standard_GZRS.')
  : storageSku
var packageIdentityName = 'id-package-${environmentName}-${token}'
var storageAccountName = 'st${token}'
var hostAccountName = 'sthost${token}'
var packageAccountName = 'stpackage${token}'
var hasLogScope = privateLogs || !empty(existingLogScopeId)
var makesLogScope = hasLogScope && empty(existingLogScopeId)
var logScopeIdParts = split(existingLogScopeId, '/')
var logScopeName = makesLogScope ? 'ampls-${environmentName}-${token}' : last(logScopeIdParts)!
var isPrivate = privateNetwork || fixedEgress || existingSubnets != null || privateApp || hasLogScope
// Combinations in which one parameter would do nothing, or break what another is for.
var misfits = filter(
  [
    fixedEgress && existingSubnets != null
      ? 'fixedEgress makes a NAT gateway for a network of our own: with existingSubnets, give that network a way out of its own.'
      : ''
    privateDnsZones != null && existingSubnets == null
      ? 'privateDnsZones are linked to networks that there are: they need existingSubnets.'
      : ''
    !empty(existingLogScopeId) && existingSubnets == null
      ? 'existingLogScopeId needs existingSubnets: the scope has an endpoint in a network that there is, and none in a new one.'
      : ''
    privateApp && access != null
      ? 'access is for an app on the internet: with privateApp, nobody comes from there.'
      : ''
  ],
  misfit => !empty(misfit)
)
var makesNetwork = empty(misfits) ? isPrivate && existingSubnets == null : fail(join(misfits, ' '))
var tenantIds = empty(entraTenantIds) ? [tenant().tenantId] : entraTenantIds
var makesCommunication = empty(communicationServiceId)
var communicationIdParts = split(communicationServiceId, '/')
var communicationName = makesCommunication ? 'acs-${environmentName}-${token}' : last(communicationIdParts)!

resource group 'Microsoft.Resources/resourceGroups@2025-04-01' = {
  name: 'rg-acs-token-broker-${environmentName}'
  location: location
  tags: allTags
}

module identity 'modules/identity.bicep' = {
  scope: group
  params: {
    location: location
    name: identityName
    tags: allTags
  }
}

module packageIdentity 'modules/identity.bicep' = {
  scope: group
  params: {
    location: location
    name: packageIdentityName
    tags: allTags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  scope: group
  params: {
    location: location
    workspaceName: 'log-${environmentName}-${token}'
    componentName: componentName
    existingWorkspaceId: logAnalyticsWorkspaceId
    dailyQuotaGb: logDailyQuotaGb
    retentionDays: logRetentionDays
    privateIngestion: hasLogScope
    identityName: identityName
    principalId: identity.outputs.principalId
    tags: allTags
  }
}

module mappings 'modules/mappings.bicep' = {
  scope: group
  params: {
    location: location
    name: storageAccountName
    sku: sku
    private: isPrivate
    tableNames: [mappingsTable, '${mappingsTable}Orphans']
    lock: lockData
    identityName: identityName
    principalId: identity.outputs.principalId
    diagnostics: diagnostics
    logReads: logTableReads
    workspaceId: monitoring.outputs.workspaceId
    tags: allTags
  }
}

module hostStorage 'modules/host-storage.bicep' = {
  scope: group
  params: {
    location: location
    name: hostAccountName
    sku: sku
    private: isPrivate
    identityName: identityName
    principalId: identity.outputs.principalId
    tags: allTags
  }
}

module packageStorage 'modules/package-storage.bicep' = {
  scope: group
  params: {
    location: location
    name: packageAccountName
    sku: sku
    private: isPrivate
    identityName: packageIdentityName
    principalId: packageIdentity.outputs.principalId
    diagnostics: diagnostics
    workspaceId: monitoring.outputs.workspaceId
    tags: allTags
  }
}

module communication 'modules/communication.bicep' = if (makesCommunication) {
  scope: group
  params: {
    name: communicationName
    dataLocation: dataLocation
    lock: lockCommunication
    tags: allTags
  }
}

module communicationAccess 'modules/communication-access.bicep' = {
  scope: resourceGroup(
    makesCommunication ? subscription().subscriptionId : communicationIdParts[2],
    makesCommunication ? group.name : communicationIdParts[4]
  )
  params: {
    name: communicationName
    identityName: identityName
    principalId: identity.outputs.principalId
    workspaceId: monitoring.outputs.workspaceId
    diagnostics: diagnostics
    diagnosticName: appName
  }
  dependsOn: [communication]
}

module network 'modules/network.bicep' = if (makesNetwork) {
  scope: group
  params: {
    location: location
    name: 'vnet-${environmentName}-${token}'
    addressPrefix: networkPrefix
    fixedEgress: fixedEgress
    tags: allTags
  }
}

module logScope 'modules/log-scope.bicep' = if (makesLogScope) {
  scope: group
  params: {
    name: logScopeName
    tags: allTags
  }
}

// A workspace that somebody else made is put into a scope of ours, not into one of theirs.
module logScopeMembers 'modules/log-scope-members.bicep' = if (hasLogScope) {
  scope: resourceGroup(
    makesLogScope ? subscription().subscriptionId : logScopeIdParts[2],
    makesLogScope ? group.name : logScopeIdParts[4]
  )
  params: {
    scopeName: logScopeName
    resourceIds: makesLogScope || empty(logAnalyticsWorkspaceId)
      ? [monitoring.outputs.componentId, monitoring.outputs.workspaceId]
      : [monitoring.outputs.componentId]
  }
  dependsOn: [logScope]
}

var appSubnetId = makesNetwork ? network!.outputs.appSubnetId : existingSubnets.?app ?? ''
var endpointSubnetId = makesNetwork ? network!.outputs.endpointSubnetId : existingSubnets.?endpoints ?? ''
var networkId = split(endpointSubnetId, '/subnets/')[0]
var storageEndpoints = [
  { name: storageAccountName, resourceId: mappings.outputs.id, groupId: 'table', zones: ['table'] }
  { name: hostAccountName, resourceId: hostStorage.outputs.id, groupId: 'blob', zones: ['blob'] }
  { name: packageAccountName, resourceId: packageStorage.outputs.id, groupId: 'blob', zones: ['blob'] }
]
// A scope that somebody else made has an endpoint already.
var logEndpoints = makesLogScope
  ? [
      {
        name: logScopeName
        resourceId: logScope!.outputs.id
        groupId: 'azuremonitor'
        zones: ['agentsvc', 'blob', 'monitor', 'ods', 'oms']
      }
    ]
  : []

module privateEndpoints 'modules/private-endpoints.bicep' = if (isPrivate) {
  scope: group
  params: {
    location: location
    networkId: networkId
    subnetId: endpointSubnetId
    endpoints: concat(storageEndpoints, logEndpoints)
    zoneIds: privateDnsZones
    tags: allTags
  }
  dependsOn: [logScopeMembers]
}

module app 'modules/app.bicep' = {
  scope: group
  params: {
    location: location
    name: appName
    planName: 'plan-${environmentName}-${token}'
    zoneRedundant: zoneRedundant
    scale: scale
    identityId: identity.outputs.id
    identityClientId: identity.outputs.clientId
    packageIdentityId: packageIdentity.outputs.id
    packageContainerUrl: packageStorage.outputs.containerUrl
    blobEndpoint: hostStorage.outputs.blobEndpoint
    tableEndpoint: mappings.outputs.tableEndpoint
    mappingsTable: mappingsTable
    acsEndpoint: communicationAccess.outputs.endpoint
    entraClientId: entraClientId
    entraTenantIds: tenantIds
    entraAudience: entraApplicationIdUri
    entraRequiredScope: entraRequiredScope
    entraAllowedClientIds: entraAllowedClientIds
    tokens: tokens
    prune: prune
    allowedOrigins: allowedOrigins
    componentName: componentName
    workspaceId: monitoring.outputs.workspaceId
    subnetId: isPrivate ? appSubnetId : ''
    private: privateApp
    access: access
    tested: !empty(availabilityTestLocations)
    diagnostics: diagnostics && logFunctionApp
    tags: allTags
  }
  dependsOn: [privateEndpoints]
}

module appEndpoint 'modules/private-endpoints.bicep' = if (privateApp) {
  scope: group
  params: {
    location: location
    networkId: networkId
    subnetId: endpointSubnetId
    endpoints: [{ name: appName, resourceId: app.outputs.id, groupId: 'sites', zones: ['sites'] }]
    zoneIds: privateDnsZones
    tags: allTags
  }
}

module alerts 'modules/alerts.bicep' = {
  scope: group
  params: {
    location: location
    appName: appName
    appUrl: app.outputs.url
    availabilityTestLocations: privateApp ? [] : availabilityTestLocations
    componentId: monitoring.outputs.componentId
    workspaceId: monitoring.outputs.workspaceId
    dailyQuotaGb: empty(logAnalyticsWorkspaceId) ? logDailyQuotaGb : 0
    acsId: communicationAccess.outputs.id
    mappingsAccountId: mappings.outputs.id
    packageAccountName: diagnostics ? packageAccountName : ''
    actionGroupName: 'ag-${environmentName}-${token}'
    emails: alertEmails
    thresholds: thresholds
    tags: allTags
  }
}

module workbook 'modules/workbook.bicep' = {
  scope: group
  params: {
    location: location
    appName: appName
    workspaceId: monitoring.outputs.workspaceId
    acsId: communicationAccess.outputs.id
    tags: allTags
  }
}

module budget 'modules/budget.bicep' = if (monthlyBudget != null && !empty(alertEmails)) {
  scope: group
  params: {
    name: 'budget-${environmentName}-${token}'
    budget: monthlyBudget!
    actionGroupId: alerts.outputs.actionGroupId
  }
}

var isOneTenant = length(tenantIds) == 1 && tenantIds[0] != '*'
var authorityTenant = isOneTenant ? tenantIds[0] : 'organizations'

@description('Where client apps get ACS tokens.')
output TOKEN_URL string = '${app.outputs.url}/api/token'

@description('Authority that client apps sign in at.')
output CLIENT_AUTHORITY string = '${environment().authentication.loginEndpoint}${authorityTenant}'

@description('Scope that client apps ask Entra for.')
output CLIENT_SCOPE string = '${entraApplicationIdUri}/${entraRequiredScope}'

@description('Where an administrator of a customer\'s tenant consents to the broker alone; {tenant} is that tenant\'s id. CLIENT_APPS of entra.bicep has the links for a client app and the broker together.')
output ADMIN_CONSENT_URL string = '${environment().authentication.loginEndpoint}{tenant}/adminconsent?client_id=${entraClientId}&redirect_uri=${uriComponent('https://entra.microsoft.com/')}'

@description('Tenant that the registration of the broker and the managed identity are in.')
output AZURE_TENANT_ID string = tenant().tenantId

@description('Region of the resources.')
output AZURE_LOCATION string = location

@description('Resource group, also for `azd`.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the function app: where the code is deployed to.')
output AZURE_FUNCTION_NAME string = appName

@description('URL of the function app.')
output AZURE_FUNCTION_URL string = app.outputs.url

@description('Client id of the managed identity.')
output IDENTITY_CLIENT_ID string = identity.outputs.clientId

@description('Object id of the managed identity: the subject of a federated credential.')
output IDENTITY_PRINCIPAL_ID string = identity.outputs.principalId

@description('Object id of the managed identity that reads and writes the package.')
output PACKAGE_IDENTITY_PRINCIPAL_ID string = packageIdentity.outputs.principalId

@description('Endpoint of the ACS resource, which client SDKs of ACS need.')
output ACS_ENDPOINT string = communicationAccess.outputs.endpoint

@description('Resource id of the ACS resource.')
output ACS_RESOURCE_ID string = communicationAccess.outputs.id

@description('Immutable id of the ACS resource: what stands behind 8:acs: in each identity.')
output ACS_IMMUTABLE_RESOURCE_ID string = communicationAccess.outputs.immutableResourceId

@description('Name of the storage account with the mappings.')
output MAPPINGS_STORAGE_ACCOUNT string = storageAccountName

@description('Name of the table of mappings.')
output MAPPINGS_TABLE string = mappingsTable

@description('Table endpoint of the mappings.')
output MAPPINGS_TABLE_ENDPOINT string = mappings.outputs.tableEndpoint

@description('Name of the storage account with the app\'s package.')
output PACKAGE_STORAGE_ACCOUNT string = packageAccountName

@description('Customer id of the Log Analytics workspace: what queries name it by.')
output LOG_ANALYTICS_WORKSPACE_ID string = monitoring.outputs.workspaceCustomerId
