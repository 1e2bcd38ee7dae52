// Fills in the placeholders of queries, whose values are known only at deployment.

@export()
@description('A query for one app and one ACS resource, with infra/queries/audit.kql in front.')
func completed(query string, appName string, acsId string) string =>
  replace(replace('${loadTextContent('../queries/audit.kql')}${query}', '{app}', appName), '{acs}', acsId)
