// One environment, described by environment variables: those of `azd`, or of a shell.
using 'main.bicep'

param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'dev')
// A region such as swedencentral; there is no default.
param location = readEnvironmentVariable('AZURE_LOCATION')

// From the registration of the broker in Entra; there is no default.
param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI', '')
// Comma-separated; none: the tenant of the subscription.
param entraTenantIds = filter(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), id => !empty(id))

param allowedOrigins = filter(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), origin => !empty(origin))
param alertEmails = filter(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), email => !empty(email))

// The month that the environment was made in, such as 2026-12; none: no budget. Never another one later.
var budgetStartMonth = readEnvironmentVariable('BUDGET_START_MONTH', '')
param monthlyBudget = empty(budgetStartMonth) ? null : { amount: 50, startMonth: budgetStartMonth }
