// A second environment by a file of its own: as main.bicepparam, but made to last.
using 'main.bicep'

param environmentName = 'prod'
// A region such as swedencentral; there is no default.
param location = readEnvironmentVariable('AZURE_LOCATION')

param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI', '')
param entraTenantIds = filter(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), id => !empty(id))

param allowedOrigins = filter(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), origin => !empty(origin))
param alertEmails = filter(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), email => !empty(email))

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

// The month that the environment was made in, such as 2026-12; none: no budget. Never another one later.
var budgetStartMonth = readEnvironmentVariable('BUDGET_START_MONTH', '')
param monthlyBudget = empty(budgetStartMonth) ? null : { amount: 300, startMonth: budgetStartMonth }
