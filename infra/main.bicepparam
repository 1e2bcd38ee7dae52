// One environment, described by environment variables: those of `azd`, or of a shell.
using 'main.bicep'

param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'dev')
param location = readEnvironmentVariable('AZURE_LOCATION', 'westeurope')

// From the registration of the broker in Entra; there is no default.
param entraClientId = readEnvironmentVariable('ENTRA_CLIENT_ID')
param entraApplicationIdUri = readEnvironmentVariable('ENTRA_APPLICATION_ID_URI', '')
// Comma-separated; none: the tenant of the subscription.
param entraTenantIds = filter(split(readEnvironmentVariable('ENTRA_TENANT_IDS', ''), ','), id => !empty(id))

param allowedOrigins = filter(split(readEnvironmentVariable('ALLOWED_ORIGINS', ''), ','), origin => !empty(origin))
param alertEmails = filter(split(readEnvironmentVariable('ALERT_EMAILS', ''), ','), email => !empty(email))
