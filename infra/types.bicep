// The shapes of the parameters that belong together.

@export()
@description('How the app scales. All functions that HTTP triggers scale together.')
@sealed()
type scaleOptions = {
  @description('Memory of an instance. 512 MB come with a quarter of a core, 2048 MB with one.')
  memoryMB: 512 | 2048 | 4096

  @description('Most instances at once. ACS allows 1000 tokens in 30 seconds, which the least value serves.')
  @minValue(40)
  @maxValue(1000)
  maximumInstances: int

  @description('Instances that are kept warm, against cold starts. Zone redundancy makes it two at least.')
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
  @maxValue(100)
  serverErrorPercent: int

  @description('Milliseconds that the 95th percentile of token requests may take within 15 minutes.')
  @minValue(100)
  slowRequestMs: int
}
