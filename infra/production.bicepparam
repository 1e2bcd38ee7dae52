// An environment for production, described by the same variables as main.bicepparam.
using 'main.bicep'

param environmentName = readEnvironmentVariable('AZURE_ENV_NAME')
// A region such as swedencentral; there is no default.
param location = readEnvironmentVariable('AZURE_LOCATION')

param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI')
param entraTenantIds = filter(map(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), item => trim(item)), item => !empty(item))

// Who may have what, as a file that is reviewed as code is; docs/policy.md has an example.
// param trustPolicy = loadJsonContent('policy.json')

param allowedOrigins = filter(map(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), item => trim(item)), item => !empty(item))
param alertEmails = filter(map(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), item => trim(item)), item => !empty(item))

param scale = {
  memoryMB: 2048
  maximumInstances: 40
  alwaysReadyInstances: 2
  requestsPerInstance: 100
}
param zoneRedundant = true
param storageSku = 'Standard_ZRS'
param privateNetwork = true
param lockData = true
param logDailyQuotaGb = 5
param logRetentionDays = 90

// The month in which the environment was made, such as 2026-12; empty: no budget. Never change it later.
var budgetStartMonth = readEnvironmentVariable('BUDGET_START_MONTH', '')
param monthlyBudget = empty(budgetStartMonth) ? null : { amount: 300, startMonth: budgetStartMonth }
