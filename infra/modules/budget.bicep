// Sends mail before the resource group costs more than it should. A budget stops nothing.

import { budgetOptions } from '../types.bicep'

@description('Name of the budget.')
@minLength(1)
@maxLength(63)
param name string

@description('Amount, and the first month.')
param budget budgetOptions

@description('Resource id of the action group to notify.')
param actionGroupId string

var notification = {
  enabled: true
  operator: 'GreaterThan'
  contactEmails: []
  contactGroups: [actionGroupId]
}

resource monthly 'Microsoft.Consumption/budgets@2024-08-01' = {
  name: name
  properties: {
    category: 'Cost'
    amount: budget.amount
    timeGrain: 'Monthly'
    // Azure refuses to change it ("Start date of budgets cannot be updated"), so it is not computed from
    // the current date. https://learn.microsoft.com/rest/api/consumption/budgets/create-or-update
    timePeriod: { startDate: '${budget.startMonth}-01T00:00:00Z' }
    notifications: {
      spent80Percent: union(notification, { threshold: 80, thresholdType: 'Actual' })
      expected100Percent: union(notification, { threshold: 100, thresholdType: 'Forecasted' })
    }
  }
}
