// The whole of the service, but for its registration in Entra (entra.bicep), which comes first.
//
//   az deployment sub create --location westeurope \
//     --template-file infra/main.bicep --parameters infra/main.bicepparam

targetScope = 'subscription'

import { alertThresholds, pruneOptions, scaleOptions, tokenOptions } from 'types.bicep'

@description('Name of this environment, such as dev or prod. All names of resources are made from it.')
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

@description('Application ID URI of the registration; empty: api://<client id>.')
param entraApplicationIdUri string = ''

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
param tokens tokenOptions = { scopes: ['chat', 'voip'], lifetimeMinutes: 60, maxLifetimeMinutes: 1440 }

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

@description('Spread the app and its storage over zones. At least two instances are then kept warm.')
param zoneRedundant bool = false

@description('Close the storage account to the internet, and let the app reach it through a network of its own.')
param privateNetwork bool = false

@description('Address space of that network, a /24 or larger.')
param networkPrefix string = '10.80.0.0/24'

@description('Forbid to delete the ACS resource and the mapping tables, until the locks are removed.')
param lockData bool = false

@description('Resource id of a Log Analytics workspace to use in place of a new one.')
param logAnalyticsWorkspaceId string = ''

@description('Most that a new workspace takes in a day, in GB.')
@minValue(1)
param logDailyQuotaGb int = 1

@description('Days that a new workspace keeps the logs.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Mail addresses that get alerts and notices of the budget.')
param alertEmails string[] = []

@description('When alerts fire.')
param thresholds alertThresholds = { serverErrorPercent: 5, slowRequestMs: 2500 }

@description('Amount that the resource group may cost in a month before mail is sent; 0: no budget.')
@minValue(0)
param monthlyBudget int = 50

@description('First day of the month that the budget begins with.')
param budgetStartDate string = '${utcNow('yyyy-MM')}-01T00:00:00Z'

var token = toLower(uniqueString(subscription().id, environmentName, location))
var allTags = union(tags, { 'azd-env-name': environmentName })
var appName = 'func-${environmentName}-${token}'
var identityName = 'id-${environmentName}-${token}'
var componentName = 'appi-${environmentName}-${token}'
var storageAccountName = 'st${token}'
var packageContainer = 'app-package'
var tenantIds = empty(entraTenantIds) ? [tenant().tenantId] : entraTenantIds
var applicationIdUri = empty(entraApplicationIdUri) ? 'api://${entraClientId}' : entraApplicationIdUri
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

module monitoring 'modules/monitoring.bicep' = {
  scope: group
  params: {
    location: location
    workspaceName: 'log-${environmentName}-${token}'
    componentName: componentName
    existingWorkspaceId: logAnalyticsWorkspaceId
    dailyQuotaGb: logDailyQuotaGb
    retentionDays: logRetentionDays
    identityName: identityName
    principalId: identity.outputs.principalId
    tags: allTags
  }
}

module storage 'modules/storage.bicep' = {
  scope: group
  params: {
    location: location
    name: storageAccountName
    packageContainer: packageContainer
    tableNames: [mappingsTable, '${mappingsTable}Orphans']
    zoneRedundant: zoneRedundant
    private: privateNetwork
    lock: lockData
    identityName: identityName
    principalId: identity.outputs.principalId
    workspaceId: monitoring.outputs.workspaceId
    tags: allTags
  }
}

module communication 'modules/communication.bicep' = if (makesCommunication) {
  scope: group
  params: {
    name: communicationName
    dataLocation: dataLocation
    lock: lockData
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
    diagnosticName: appName
  }
  dependsOn: [communication]
}

module network 'modules/network.bicep' = if (privateNetwork) {
  scope: group
  params: {
    location: location
    name: 'vnet-${environmentName}-${token}'
    addressPrefix: networkPrefix
    tags: allTags
  }
}

module privateEndpoints 'modules/private-endpoints.bicep' = if (privateNetwork) {
  scope: group
  params: {
    location: location
    networkId: network!.outputs.id
    subnetId: network!.outputs.endpointSubnetId
    storageAccountName: storageAccountName
    storageAccountId: storage.outputs.id
    tags: allTags
  }
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
    blobEndpoint: storage.outputs.blobEndpoint
    packageContainer: packageContainer
    tableEndpoint: storage.outputs.tableEndpoint
    mappingsTable: mappingsTable
    acsEndpoint: communicationAccess.outputs.endpoint
    entraClientId: entraClientId
    entraTenantIds: tenantIds
    entraAudience: applicationIdUri
    entraRequiredScope: entraRequiredScope
    entraAllowedClientIds: entraAllowedClientIds
    tokens: tokens
    prune: prune
    allowedOrigins: allowedOrigins
    componentName: componentName
    workspaceId: monitoring.outputs.workspaceId
    subnetId: privateNetwork ? network!.outputs.appSubnetId : ''
    tags: allTags
  }
  dependsOn: [privateEndpoints]
}

module alerts 'modules/alerts.bicep' = {
  scope: group
  params: {
    location: location
    appName: appName
    workspaceId: monitoring.outputs.workspaceId
    acsId: communicationAccess.outputs.id
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

module budget 'modules/budget.bicep' = if (monthlyBudget > 0) {
  scope: group
  params: {
    name: 'budget-${environmentName}-${token}'
    amount: monthlyBudget
    startDate: budgetStartDate
    emails: alertEmails
  }
}

var isOneTenant = length(tenantIds) == 1 && tenantIds[0] != '*'
var authorityTenant = isOneTenant ? tenantIds[0] : 'organizations'

@description('Where client apps get ACS tokens.')
output TOKEN_URL string = '${app.outputs.url}/api/token'

@description('Authority that client apps sign in at.')
output CLIENT_AUTHORITY string = '${environment().authentication.loginEndpoint}${authorityTenant}'

@description('Scope that client apps ask Entra for.')
output CLIENT_SCOPE string = '${applicationIdUri}/${entraRequiredScope}'

@description('Where an administrator of a customer\'s tenant consents to the broker alone; {tenant} is that tenant\'s id. CLIENT_APPS of entra.bicep has the links for a client app and the broker together.')
output ADMIN_CONSENT_URL string = '${environment().authentication.loginEndpoint}{tenant}/adminconsent?client_id=${entraClientId}&redirect_uri=${uriComponent('https://entra.microsoft.com/')}'

@description('Tenant that the registration of the broker and the managed identity are in.')
output AZURE_TENANT_ID string = tenant().tenantId

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

@description('Endpoint of the ACS resource, which client SDKs of ACS need.')
output ACS_ENDPOINT string = communicationAccess.outputs.endpoint

@description('Resource id of the ACS resource.')
output ACS_RESOURCE_ID string = communicationAccess.outputs.id

@description('Immutable id of the ACS resource: what stands behind 8:acs: in each identity.')
output ACS_IMMUTABLE_RESOURCE_ID string = communicationAccess.outputs.immutableResourceId

@description('Name of the storage account with the mappings.')
output AZURE_STORAGE_ACCOUNT string = storageAccountName

@description('Table endpoint of the mappings.')
output MAPPINGS_TABLE_ENDPOINT string = storage.outputs.tableEndpoint
