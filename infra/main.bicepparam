// An environment, described by environment variables: those of `azd`, or of a shell.
using 'main.bicep'

// The deployment is named after it as well, so the two must not come from different places.
param environmentName = readEnvironmentVariable('AZURE_ENV_NAME')
// A region such as swedencentral; there is no default.
param location = readEnvironmentVariable('AZURE_LOCATION')

// From the registration of the broker in Entra; neither has a default.
param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI')
// Comma-separated; none: the tenant of the subscription.
param entraTenantIds = filter(map(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), item => trim(item)), item => !empty(item))

param allowedOrigins = filter(map(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), item => trim(item)), item => !empty(item))
param alertEmails = filter(map(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), item => trim(item)), item => !empty(item))

// The month that the environment was made in, such as 2026-12; none: no budget. Never another one later.
var budgetStartMonth = readEnvironmentVariable('BUDGET_START_MONTH', '')
param monthlyBudget = empty(budgetStartMonth) ? null : { amount: 50, startMonth: budgetStartMonth }
