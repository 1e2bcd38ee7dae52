// The whole service except its registration in Entra (entra.bicep), which must be deployed first.
//
//   az deployment sub create --name "acs-token-broker-$AZURE_ENV_NAME" --location "$AZURE_LOCATION" \
//     --template-file infra/main.bicep --parameters infra/main.bicepparam

targetScope = 'subscription'

import { accessOptions, alertThresholds, backupOptions, budgetOptions, dnsZoneIds, exchangeOptions, pruneOptions, scaleOptions, subnetIds, tokenOptions } from 'types.bicep'

@description('Name of this environment, such as dev or prod: lower-case letters, digits and hyphens. The names of all resources contain it or a hash of it.')
@minLength(2)
@maxLength(20)
param environmentName string

@description('Region of everything except the ACS resource, which is global.')
@metadata({ azd: { type: 'location' } })
param location string

@description('Tags of every resource.')
param tags { *: string } = {}

@description('Client id of the broker\'s app registration.')
@minLength(36)
@maxLength(36)
param entraClientId string

@description('Ids of the tenants whose users are served, or * alone for every organisation; empty: the tenant of the subscription.')
param entraTenantIds string[] = []

@description('Application ID URI of the registration.')
@minLength(1)
param entraApplicationIdUri string

@description('Delegated scope that access tokens must have.')
@minLength(1)
param entraRequiredScope string = 'access_as_user'

@description('Client ids of the apps that may call; empty: all that have the scope.')
param entraAllowedClientIds string[] = []

@description('App role that administrators must have, users and apps alike. The registration of entra.bicep has Mappings.Admin.')
@minLength(1)
@maxLength(120)
param entraAdminRole string = 'Mappings.Admin'

@description('Id of the tenant whose administrators administer all tenants that are served; empty: each tenant\'s administrators administer that tenant alone.')
param entraOperatorTenantId string = ''

@description('Resource id of an ACS resource to use instead of a new one.')
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

@description('Whether callers can get tokens as Entra ID users or Teams users. The broker\'s registration must then trust the app\'s identity.')
param exchanges exchangeOptions = { kinds: [] }

@description('What the ACS tokens allow, and for how long.')
param tokens tokenOptions = { scopes: ['voip'], lifetimeMinutes: 60, maxLifetimeMinutes: 1440 }

@description('Rules that narrow who may have what, such as loadJsonContent(\'policy.json\') in a parameter file; null: none. See docs/policy.md.')
param trustPolicy object?

@description('When identities that nobody uses are removed, and the limits on that.')
param prune pruneOptions = {
  schedule: '0 0 3 * * *'
  idleDays: 90
  dryRun: false
  maxPercent: 20
  maxDeletes: 5000
}

@description('When the mapping tables are backed up to another storage account, and how long backups are kept.')
param backups backupOptions = {
  schedule: '0 30 1 * * *'
  keepDays: 90
  immutableDays: 14
  immutabilityLocked: false
}

@description('Name of the table of mappings; the name of the ledger of orphans has Orphans appended.')
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

@description('Spread the app over zones. Its storage must be zone-redundant first: see storageSku.')
param zoneRedundant bool = false

@description('How the storage accounts are replicated. zoneRedundant needs ZRS or GZRS. A deployment cannot convert an existing account: request the conversion first (`az storage account migration start`), then change this.')
param storageSku 'Standard_LRS' | 'Standard_ZRS' | 'Standard_GRS' | 'Standard_GZRS' = 'Standard_LRS'

@description('Close the storage accounts to the internet, and let the app reach them through a virtual network.')
param privateNetwork bool = false

@description('Address space of that network, a /24 or larger.')
param networkPrefix string = '10.80.0.0/24'

@description('Let the app call from one address that never changes, which firewalls elsewhere can allow. It takes a NAT gateway, which is in one zone. Implies privateNetwork.')
param fixedEgress bool = false

@description('Existing subnets to use instead of a new network, with their own routes and firewalls. Implies privateNetwork.')
param existingSubnets subnetIds?

@description('Private DNS zones to use instead of new ones; {}: the network\'s operator or Azure Policy makes the DNS records. A network takes only one zone of each name, so a second environment in it needs this.')
param privateDnsZones dnsZoneIds?

@description('Close the app itself to the internet: callers and deployments use a private endpoint. Implies privateNetwork.')
param privateApp bool = false

@description('Who may reach the app over the internet; null: everybody.')
param access accessOptions?

@description('Send the app\'s telemetry through the network, to an Azure Monitor Private Link Scope. Implies privateNetwork.')
param privateLogs bool = false

@description('Resource id of an Azure Monitor Private Link Scope to use instead of a new one. Implies privateLogs.')
param existingLogScopeId string = ''

@description('Lock a new ACS resource against deletion, which would delete every identity.')
param lockCommunication bool = true

@description('Lock the storage account with the mapping tables against deletion.')
param lockData bool = false

@description('Make the diagnostic settings that send the resources\' logs to the workspace; false if Azure Policy makes them, or another broker has made them for the same ACS resource and workspace. Azure sends each log to a workspace only once.')
param diagnostics bool = true

@description('Also send the Functions host\'s log directly to the workspace, in case the app fails before it can write to Application Insights. It repeats all that Application Insights has.')
param logFunctionApp bool = false

@description('Also log each read of the mapping tables: one more row for each token.')
param logTableReads bool = false

@description('Resource id of a Log Analytics workspace to use instead of a new one.')
param logAnalyticsWorkspaceId string = ''

@description('Daily cap of a new workspace, in GB. 1 GB for each 30,000 tokens a day is ten times what is expected.')
@minValue(1)
param logDailyQuotaGb int = 1

@description('Days that a new workspace keeps the logs.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Mail addresses that get alerts and budget notices.')
param alertEmails string[] = []

@description('Locations from which Azure tests the app\'s health every five minutes. No test if this is empty or the app is closed to the internet. https://learn.microsoft.com/azure/azure-monitor/app/availability#location-population-tags')
param availabilityTestLocations string[] = [
  'emea-nl-ams-azr' // West Europe
  'emea-gb-db3-azr' // North Europe
  'emea-ru-msa-edge' // UK South
  'us-va-ash-azr' // East US
  'apac-sg-sin-azr' // Southeast Asia
]

@description('When alerts fire.')
param thresholds alertThresholds = { serverErrorPercent: 5, slowRequestMs: 2500 }

@description('What the resource group may cost before mail is sent to alertEmails. No budget if this is null or alertEmails is empty.')
param monthlyBudget budgetOptions?

var nameCharacters = 'abcdefghijklmnopqrstuvwxyz0123456789-'
var invalid = filter(range(0, length(environmentName)), at => !contains(nameCharacters, substring(environmentName, at, 1)))
var nameProblem = !empty(invalid)
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
var backupAccountName = 'stbackup${token}'
var hasLogScope = privateLogs || !empty(existingLogScopeId)
var makesLogScope = hasLogScope && empty(existingLogScopeId)
var logScopeIdParts = split(existingLogScopeId, '/')
var logScopeName = makesLogScope ? 'ampls-${environmentName}-${token}' : last(logScopeIdParts)!
var isPrivate = privateNetwork || fixedEgress || existingSubnets != null || privateApp || hasLogScope
// Combinations in which one parameter would have no effect, or defeat another.
var conflicts = filter(
  [
    fixedEgress && existingSubnets != null
      ? 'fixedEgress makes a NAT gateway for a new network: with existingSubnets, give that network its own NAT gateway or firewall.'
      : ''
    privateDnsZones != null && existingSubnets == null
      ? 'privateDnsZones must be linked to an existing network: they need existingSubnets.'
      : ''
    !empty(existingLogScopeId) && existingSubnets == null
      ? 'existingLogScopeId needs existingSubnets: the scope has an endpoint in an existing network, but none in a new one.'
      : ''
    privateApp && access != null
      ? 'access is for an app on the internet: with privateApp, the app is closed to it.'
      : ''
  ],
  conflict => !empty(conflict)
)
var makesNetwork = empty(conflicts) ? isPrivate && existingSubnets == null : fail(join(conflicts, ' '))
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

module backupStorage 'modules/backups.bicep' = {
  scope: group
  params: {
    location: location
    name: backupAccountName
    sku: backups.?storageSku ?? sku
    private: isPrivate
    backups: backups
    lock: lockData
    identityName: identityName
    principalId: identity.outputs.principalId
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

// An existing workspace is put into a new scope, but not into an existing one.
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
  { name: backupAccountName, resourceId: backupStorage.outputs.id, groupId: 'blob', zones: ['blob'] }
]
// An existing scope has an endpoint already.
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
    entraAdminRole: entraAdminRole
    entraOperatorTenantId: entraOperatorTenantId
    exchanges: exchanges
    tokens: tokens
    trustPolicy: trustPolicy
    prune: prune
    backupEndpoint: backupStorage.outputs.blobEndpoint
    backupContainer: backupStorage.outputs.containerName
    backupSchedule: backups.schedule
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

@description('URL at which client apps get ACS tokens.')
output TOKEN_URL string = '${app.outputs.url}/api/token'

@description('Authority at which client apps sign users in.')
output CLIENT_AUTHORITY string = '${environment().authentication.loginEndpoint}${authorityTenant}'

@description('Scope that client apps ask Entra for.')
output CLIENT_SCOPE string = '${entraApplicationIdUri}/${entraRequiredScope}'

@description('Page on which an administrator of a customer\'s tenant consents to the broker alone; {tenant} is that tenant\'s id. CLIENT_APPS of entra.bicep has the pages for a client app and the broker together.')
output ADMIN_CONSENT_URL string = '${environment().authentication.loginEndpoint}{tenant}/adminconsent?client_id=${entraClientId}&redirect_uri=${uriComponent('https://entra.microsoft.com/')}'

@description('Tenant of the broker\'s registration and of the managed identity.')
output AZURE_TENANT_ID string = tenant().tenantId

@description('Region of the resources.')
output AZURE_LOCATION string = location

@description('Name of the resource group; `azd` reads it, too.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the function app.')
output AZURE_FUNCTION_NAME string = appName

@description('URL of the function app.')
output AZURE_FUNCTION_URL string = app.outputs.url

@description('Client id of the managed identity.')
output IDENTITY_CLIENT_ID string = identity.outputs.clientId

@description('Object id of the managed identity, for example as the subject of a federated credential.')
output IDENTITY_PRINCIPAL_ID string = identity.outputs.principalId

@description('Object id of the managed identity that reads and writes the package.')
output PACKAGE_IDENTITY_PRINCIPAL_ID string = packageIdentity.outputs.principalId

@description('Endpoint of the ACS resource, which client SDKs of ACS need.')
output ACS_ENDPOINT string = communicationAccess.outputs.endpoint

@description('Resource id of the ACS resource.')
output ACS_RESOURCE_ID string = communicationAccess.outputs.id

@description('Immutable id of the ACS resource: the part after 8:acs: in each identity.')
output ACS_IMMUTABLE_RESOURCE_ID string = communicationAccess.outputs.immutableResourceId

@description('Name of the storage account with the mappings.')
output MAPPINGS_STORAGE_ACCOUNT string = storageAccountName

@description('Name of the table of mappings.')
output MAPPINGS_TABLE string = mappingsTable

@description('Table endpoint of the mappings.')
output MAPPINGS_TABLE_ENDPOINT string = mappings.outputs.tableEndpoint

@description('Name of the storage account with the app\'s package.')
output PACKAGE_STORAGE_ACCOUNT string = packageAccountName

@description('Name of the storage account with the backups.')
output BACKUP_STORAGE_ACCOUNT string = backupAccountName

@description('Name of the container with the backups.')
output BACKUP_CONTAINER string = backupStorage.outputs.containerName

@description('Customer id of the Log Analytics workspace, which queries need.')
output LOG_ANALYTICS_WORKSPACE_ID string = monitoring.outputs.workspaceCustomerId
