// The shapes of the parameters that belong together.

@export()
@description('How the app scales. All functions that HTTP triggers scale together.')
@sealed()
type scaleOptions = {
  @description('Memory of an instance. 512 MB come with a quarter of a core, 2048 MB with one.')
  memoryMB: 512 | 2048 | 4096

  @description('Most instances at once, which also bounds what a flood costs. ACS allows 1000 tokens in 30 seconds; 40 instances serve far more.')
  @minValue(1)
  @maxValue(1000)
  maximumInstances: int

  @description('Instances that are kept warm for requests, against cold starts. With zone redundancy Azure keeps two at least, and two more for the timer.')
  @minValue(0)
  @maxValue(100)
  alwaysReadyInstances: int

  @description('Requests that one instance serves at once before another instance is started.')
  @minValue(1)
  @maxValue(1000)
  requestsPerInstance: int
}

@export()
@description('What the ACS tokens allow, and for how long.')
@sealed()
type tokenOptions = {
  @description('Scopes of the ACS tokens. Callers can ask for fewer.')
  @minLength(1)
  scopes: ('chat' | 'voip' | 'chat.join' | 'chat.join.limited' | 'voip.join')[]

  @description('Lifetime of a token where the caller asks for none.')
  @minValue(60)
  @maxValue(1440)
  lifetimeMinutes: int

  @description('Longest lifetime that a caller may ask for.')
  @minValue(60)
  @maxValue(1440)
  maxLifetimeMinutes: int
}

@export()
@description('When identities that nobody uses are removed, and the brakes on that.')
@sealed()
type pruneOptions = {
  @description('NCRONTAB schedule in UTC. At least daily: an alert fires after 36 hours without a run.')
  @minLength(11)
  schedule: string

  @description('Days without use after which an identity is removed.')
  @minValue(3)
  @maxValue(36500)
  idleDays: int

  @description('Only report what would be removed.')
  dryRun: bool

  @description('A run that finds more than this percentage of the identities idle removes none.')
  @minValue(1)
  @maxValue(100)
  maxPercent: int

  @description('Most identities removed in one run.')
  @minValue(1)
  @maxValue(1000000)
  maxDeletes: int
}

@export()
@description('When an alert fires.')
@sealed()
type alertThresholds = {
  @description('Percent of requests that may be answered with 5xx within 15 minutes.')
  @minValue(1)
  @maxValue(99)
  serverErrorPercent: int

  @description('Milliseconds that the 95th percentile of token requests may take within 15 minutes.')
  @minValue(100)
  slowRequestMs: int
}

@export()
@description('Who may reach the app over the internet; everybody else gets 403 before the app is asked. Our own availability test comes through, if there is one.')
@sealed()
type accessOptions = {
  @description('IP ranges of callers, such as 203.0.113.0/24, and of whoever deploys code.')
  ipRanges: string[]?

  @description('Id of the Azure Front Door profile that callers come through (its property `frontDoorId`).')
  @minLength(36)
  @maxLength(36)
  frontDoorId: string?
}

@export()
@description('Subnets of one existing network.')
@sealed()
type subnetIds = {
  @description('Resource id of the subnet that the app calls from: a /26 or larger, delegated to Microsoft.App/environments, for no other app.')
  @minLength(1)
  app: string

  @description('Resource id of the subnet of the private endpoints.')
  @minLength(1)
  endpoints: string
}

@export()
@description('Resource ids of existing private DNS zones. A zone that is left out is left to somebody else, such as Azure Policy.')
@sealed()
type dnsZoneIds = {
  @description('privatelink.blob.core.windows.net')
  blob: string?

  @description('privatelink.table.core.windows.net')
  table: string?

  @description('privatelink.azurewebsites.net')
  sites: string?

  @description('privatelink.monitor.azure.com')
  monitor: string?

  @description('privatelink.oms.opinsights.azure.com')
  oms: string?

  @description('privatelink.ods.opinsights.azure.com')
  ods: string?

  @description('privatelink.agentsvc.azure-automation.net')
  agentsvc: string?
}

@export()
@description('A private way into a resource.')
@sealed()
type privateEndpoint = {
  @description('What the endpoint is named after.')
  name: string

  @description('Resource id of what it leads to.')
  resourceId: string

  @description('Which part of the resource it leads to.')
  groupId: 'azuremonitor' | 'blob' | 'sites' | 'table'

  @description('Zones that its names are in.')
  zones: ('agentsvc' | 'blob' | 'monitor' | 'ods' | 'oms' | 'sites' | 'table')[]
}

@export()
@description('What the resource group may cost before mail is sent. A budget stops nothing.')
@sealed()
type budgetOptions = {
  @description('Amount for a month, in the currency of the subscription.')
  @minValue(1)
  amount: int

  @description('Month that the budget begins with, such as 2026-12. A new budget takes the current month or one of the next twelve; an existing one keeps its month for good, and a deployment with another fails.')
  @minLength(7)
  @maxLength(7)
  startMonth: string
}
