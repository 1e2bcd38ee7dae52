// The function app and its Flex Consumption plan.

import { accessOptions, exchangeOptions, pruneOptions, scaleOptions, tokenOptions } from '../types.bicep'

@description('Region of the app.')
param location string

@description('Name of the app, the first part of its host name.')
@minLength(2)
@maxLength(60)
param name string

@description('Name of the plan.')
@minLength(1)
@maxLength(60)
param planName string

@description('Spread the plan over zones.')
param zoneRedundant bool

@description('How the app scales.')
param scale scaleOptions

@description('Resource id of the identity that the app runs as.')
param identityId string

@description('Client id of the identity that the app runs as.')
param identityClientId string

@description('Resource id of the identity that reads and writes the app\'s package.')
param packageIdentityId string

@description('URL of the blob container that holds the app\'s package.')
param packageContainerUrl string

@description('Blob endpoint of the host\'s storage account, with a slash at the end.')
param blobEndpoint string

@description('Table endpoint of the mappings.')
param tableEndpoint string

@description('Name of the table of mappings.')
param mappingsTable string

@description('Endpoint of the ACS resource.')
param acsEndpoint string

@description('Client id of the broker\'s app registration.')
param entraClientId string

@description('Ids of the tenants whose users are served, or * alone.')
param entraTenantIds string[]

@description('Exact audience of v1 tokens.')
param entraAudience string

@description('Delegated scope that access tokens must have.')
param entraRequiredScope string

@description('Client ids of the apps that may call; empty: all.')
param entraAllowedClientIds string[]

@description('App role that administrators must have.')
param entraAdminRole string

@description('Id of the tenant whose administrators administer all tenants; empty: none.')
param entraOperatorTenantId string

@description('Whether callers can get tokens as Entra ID users or Teams users.')
param exchanges exchangeOptions

@description('What the ACS tokens allow.')
param tokens tokenOptions

@description('Rules that narrow who may have what; null: none.')
param trustPolicy object?

@description('When identities that nobody uses are removed.')
param prune pruneOptions

@description('Blob endpoint of the storage account for backups.')
param backupEndpoint string

@description('Name of the container for backups.')
param backupContainer string

@description('NCRONTAB schedule of backups, in UTC.')
param backupSchedule string

@description('Origins of web apps that may call the broker from a browser.')
param allowedOrigins string[]

@description('Name of the Application Insights component.')
param componentName string

@description('Resource id of the workspace that gets the logs.')
param workspaceId string

@description('Resource id of the subnet from which the app calls; empty: none.')
param subnetId string

@description('Closed to the internet; a private endpoint is the only way in.')
param private bool

@description('Who may reach the app over the internet; null: everybody.')
param access accessOptions?

@description('If access is restricted, admit our availability test, too.')
param tested bool

@description('Send the host\'s log to the workspace.')
param diagnostics bool

@description('Tags of the resources.')
param tags object

resource component 'Microsoft.Insights/components@2020-02-02' existing = {
  name: componentName
}

// The settings that shared/settings.py reads.
var brokerSettings = {
  ENTRA_CLIENT_ID: entraClientId
  ENTRA_TENANT_IDS: join(entraTenantIds, ',')
  ENTRA_AUDIENCES: entraAudience
  ENTRA_REQUIRED_SCOPE: entraRequiredScope
  ENTRA_ALLOWED_CLIENT_IDS: join(entraAllowedClientIds, ',')
  ENTRA_ADMIN_ROLE: entraAdminRole
  ENTRA_OPERATOR_TENANT_ID: entraOperatorTenantId
  ENTRA_AUTHORITY_HOST: environment().authentication.loginEndpoint
  ACS_ENDPOINT: acsEndpoint
  ACS_EXCHANGES: join(exchanges.kinds, ',')
  ACS_ENTRA_SCOPES: join(exchanges.?entraScopes ?? ['VoIP'], ',')
  ACS_TOKEN_SCOPES: join(tokens.scopes, ',')
  ACS_TOKEN_LIFETIME_MINUTES: string(tokens.lifetimeMinutes)
  ACS_TOKEN_MAX_LIFETIME_MINUTES: string(tokens.maxLifetimeMinutes)
  TRUST_POLICY: trustPolicy == null ? '' : string(trustPolicy)
  MAPPINGS_TABLE_ENDPOINT: tableEndpoint
  MAPPINGS_TABLE: mappingsTable
  AZURE_CLIENT_ID: identityClientId
  AZURE_TENANT_ID: tenant().tenantId
  PRUNE_SCHEDULE: prune.schedule
  PRUNE_IDLE_DAYS: string(prune.idleDays)
  PRUNE_DRY_RUN: toLower(string(prune.dryRun))
  PRUNE_MAX_SHARE: prune.maxPercent == 100 ? '1' : '0.${padLeft(prune.maxPercent, 2, '0')}'
  PRUNE_MAX_DELETES: string(prune.maxDeletes)
  BACKUP_BLOB_ENDPOINT: backupEndpoint
  BACKUP_CONTAINER: backupContainer
  BACKUP_SCHEDULE: backupSchedule
  PRUNE_DELETED_USERS_AFTER_DAYS: string(prune.?deletedUsersAfterDays ?? '')
  PRUNE_MAX_DELETED_USERS: string(prune.?maxDeletedUsers ?? 500)
}

// The settings that the Functions host reads. Blobs are all it needs for HTTP and timers. It would also
// keep diagnostic events for the portal in a table, and without one logs a warning and goes on. They are
// not worth one more role and one more private endpoint.
var hostSettings = {
  AzureWebJobsStorage__blobServiceUri: blobEndpoint
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identityClientId
  APPLICATIONINSIGHTS_CONNECTION_STRING: component.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
  // Far above the broker's own limit of 16 KiB, so that the broker answers, and far below 100 MB.
  FUNCTIONS_REQUEST_BODY_SIZE_LIMIT: '1048576'
}

var alwaysReadyInstances = zoneRedundant ? max(2, scale.alwaysReadyInstances) : scale.alwaysReadyInstances

var ranges = map(access.?ipRanges ?? [], range => { action: 'Allow', ipAddress: range })
var frontDoor = access.?frontDoorId == null
  ? []
  : [
      {
        action: 'Allow'
        tag: 'ServiceTag'
        ipAddress: 'AzureFrontDoor.Backend'
        // The tag admits all customers' Front Door profiles; this header says which one it is.
        headers: { 'x-azure-fdid': [access.?frontDoorId] }
      }
    ]
var availabilityTests = tested
  ? [
      {
        action: 'Allow'
        tag: 'ServiceTag'
        ipAddress: 'ApplicationInsightsAvailability'
        // All customers' tests come from these addresses; ours sends a header that tells it from others.
        // App Service compares only four headers, and of these this one can have any value.
        // https://learn.microsoft.com/azure/azure-monitor/app/availability-private-test
        headers: { 'x-azure-fdid': [guid(component.id)] }
      }
    ]
  : []
var unmatched = access == null ? 'Allow' : 'Deny'
var appRules = access == null ? [] : concat(ranges, frontDoor, availabilityTests)

resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: planName
  location: location
  kind: 'functionapp'
  tags: tags
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  properties: {
    reserved: true
    zoneRedundant: zoneRedundant
  }
}

resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: name
  location: location
  kind: 'functionapp,linux'
  // `azd deploy` finds the app by this tag.
  tags: union(tags, { 'azd-service-name': 'api' })
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {}, '${packageIdentityId}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    clientAffinityEnabled: false
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      http20Enabled: true
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      ipSecurityRestrictionsDefaultAction: unmatched
      ipSecurityRestrictions: map(range(0, length(appRules)), i => union(appRules[i], { priority: 100 + i }))
      // The endpoint for deployments. Neither Front Door nor a test needs it.
      scmIpSecurityRestrictionsDefaultAction: unmatched
      scmIpSecurityRestrictions: map(range(0, length(ranges)), i => union(ranges[i], { priority: 100 + i }))
      cors: { allowedOrigins: allowedOrigins, supportCredentials: false }
      appSettings: map(
        items(union(brokerSettings, hostSettings)),
        setting => { name: setting.key, value: setting.value }
      )
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: packageContainerUrl
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: packageIdentityId
          }
        }
      }
      runtime: { name: 'python', version: '3.13' }
      scaleAndConcurrency: {
        instanceMemoryMB: scale.memoryMB
        maximumInstanceCount: scale.maximumInstances
        alwaysReady: alwaysReadyInstances == 0 ? [] : [{ name: 'http', instanceCount: alwaysReadyInstances }]
        // Set, since Python's default is meant for functions that block.
        triggers: { http: { perInstanceConcurrency: scale.requestsPerInstance } }
      }
    }
  }
}

// No passwords for publishing: every app has them, and they are in its publish profile. Code is deployed
// with Entra tokens.
resource scmPasswords 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  properties: { allow: false }
}

resource ftpPasswords 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  properties: { allow: false }
}

// Repeats what Application Insights has, in case the app cannot write there.
resource appLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (diagnostics) {
  name: 'to-workspace'
  scope: app
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'FunctionAppLogs', enabled: true }
    ]
  }
}

@description('Resource id of the app.')
output id string = app.id

@description('URL of the app, without a slash at the end.')
output url string = 'https://${app.properties.defaultHostName}'
