// The types of parameters that are objects.

@export()
@description('How the app scales. All functions that HTTP triggers scale together.')
@sealed()
type scaleOptions = {
  @description('Memory of an instance. With 512 MB it has a quarter of a core, with 2048 MB one core.')
  memoryMB: 512 | 2048 | 4096

  @description('Most instances at once, which also limits what a flood of requests costs. ACS allows 1000 tokens in 30 seconds; 40 instances serve far more.')
  @minValue(1)
  @maxValue(1000)
  maximumInstances: int

  @description('Instances that are kept warm for requests, to avoid cold starts. With zone redundancy, Azure keeps at least two, and two more for each timer.')
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

  @description('Lifetime of a token if the caller asks for none.')
  @minValue(60)
  @maxValue(1440)
  lifetimeMinutes: int

  @description('Longest lifetime that a caller may ask for.')
  @minValue(60)
  @maxValue(1440)
  maxLifetimeMinutes: int
}

@export()
@description('Whether callers can get tokens as who they are to ACS already, without an identity of the broker\'s.')
@sealed()
type exchangeOptions = {
  @description('The exchanges that are on: for Entra ID users, and for Teams users or for Teams extension.')
  kinds: ('entra' | 'teams' | 'teams-extension')[]

  @description('Scopes of Entra ID users, or .default alone for all that were consented to; null: VoIP.')
  @minLength(1)
  entraScopes: ('.default' | 'VoIP' | 'VoIP.Join' | 'Chat' | 'Chat.Join' | 'Chat.Join.Limited')[]?
}

@export()
@description('When identities that nobody uses are removed, and the limits on that.')
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

  @description('Days after which the identity of somebody who was deleted from Entra is removed, idle or not. Null: Microsoft Graph is not asked. The managed identity needs the permission User.Read.All.')
  @minValue(1)
  @maxValue(25)
  deletedUsersAfterDays: int?

  @description('A run that finds more people than this deleted from Entra removes none of them; null: 500.')
  @minValue(1)
  @maxValue(1000000)
  maxDeletedUsers: int?
}

@export()
@description('When the mapping tables are backed up, and how long backups are kept.')
@sealed()
type backupOptions = {
  @description('NCRONTAB schedule in UTC. At least daily: an alert fires after 26 hours without a backup.')
  @minLength(11)
  schedule: string

  @description('Days after which a backup is deleted. People who are erased remain in backups for so long, and about ten days more.')
  @minValue(1)
  @maxValue(36500)
  keepDays: int

  @description('Days during which nobody can change or delete a backup.')
  @minValue(1)
  @maxValue(36500)
  immutableDays: int

  @description('Whether the immutability policy has been locked, which is done by hand and cannot be undone: deployments then leave it as it is.')
  immutabilityLocked: bool

  @description('How many copies there are, and where; absent: as storageSku says. Standard_RAGRS and Standard_RAGZRS have one in the paired region that can be read while the region is down.')
  storageSku: 'Standard_LRS' | 'Standard_ZRS' | 'Standard_GRS' | 'Standard_GZRS' | 'Standard_RAGRS' | 'Standard_RAGZRS'?
}

@export()
@description('When alerts fire.')
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
@description('Who may reach the app over the internet; everybody else gets 403 without reaching it. The availability test, if any, is admitted, too.')
@sealed()
type accessOptions = {
  @description('IP ranges of callers, such as 203.0.113.0/24, and of those who deploy code.')
  ipRanges: string[]?

  @description('Id of the Azure Front Door profile that forwards callers\' requests (its property `frontDoorId`).')
  @minLength(36)
  @maxLength(36)
  frontDoorId: string?
}

@export()
@description('Subnets of one existing network.')
@sealed()
type subnetIds = {
  @description('Resource id of the subnet from which the app calls: a /26 or larger, delegated to Microsoft.App/environments, and used by no other app.')
  @minLength(1)
  app: string

  @description('Resource id of the subnet of the private endpoints.')
  @minLength(1)
  endpoints: string
}

@export()
@description('Resource ids of existing private DNS zones. If a zone is left out, somebody else must make its DNS records, such as Azure Policy.')
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
@description('A private endpoint.')
@sealed()
type privateEndpoint = {
  @description('Name of the resource, which is a part of the endpoint\'s name.')
  name: string

  @description('Resource id of the resource that it leads to.')
  resourceId: string

  @description('The part of the resource that it leads to.')
  groupId: 'azuremonitor' | 'blob' | 'sites' | 'table'

  @description('Zones that have its names.')
  zones: ('agentsvc' | 'blob' | 'monitor' | 'ods' | 'oms' | 'sites' | 'table')[]
}

@export()
@description('What the resource group may cost before mail is sent. Nothing is stopped.')
@sealed()
type budgetOptions = {
  @description('Amount per month, in the subscription\'s currency.')
  @minValue(1)
  amount: int

  @description('First month of the budget, such as 2026-12. For a new budget, this is the current month or one of the next twelve. An existing budget keeps its month, and a deployment with another one fails.')
  @minLength(7)
  @maxLength(7)
  startMonth: string
}
