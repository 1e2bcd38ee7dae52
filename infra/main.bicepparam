// A small environment, described by environment variables, which `azd` or a shell sets.
using 'main.bicep'

// The deployment's name has it, too, so both must come from the same variable.
param environmentName = readEnvironmentVariable('AZURE_ENV_NAME')
// A region such as swedencentral; there is no default.
param location = readEnvironmentVariable('AZURE_LOCATION')

// From the registration of the broker in Entra; neither has a default.
param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI')
// Comma-separated; empty: the tenant of the subscription.
param entraTenantIds = filter(map(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), item => trim(item)), item => !empty(item))

// Who may have what, as a file that is reviewed as code is; docs/policy.md has an example.
// param trustPolicy = loadJsonContent('policy.json')

param allowedOrigins = filter(map(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), item => trim(item)), item => !empty(item))
param alertEmails = filter(map(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), item => trim(item)), item => !empty(item))

// The month in which the environment was made, such as 2026-12; empty: no budget. Never change it later.
var budgetStartMonth = readEnvironmentVariable('BUDGET_START_MONTH', '')
param monthlyBudget = empty(budgetStartMonth) ? null : { amount: 50, startMonth: budgetStartMonth }
